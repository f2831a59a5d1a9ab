"""What all kernels of packed codes share: how they are stored and multiplied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from ...passes.structures.base import Factors
from ...passes.structures.block_quantized import BlockQuantized
from .base import Kernel, Packed
from .emit import Flat
from .matmul import Matmul
from .sources import Codes

Q = TypeVar("Q", bound=BlockQuantized)


class CodesKernel(Kernel[Q]):
    """Stores codes `[P, ceil(m / 16), bytes, 16]` and scales `[P, ceil(m / 16), groups, 16]`.

    P is the number of planes with scales of their own, else 1; lane l of block b is output
    `16 b + l`. A row's bytes run along the inputs, group by group, each group from a fresh byte
    on. Scales are float32, one for each block of the engine.
    """

    @abstractmethod
    def source(self, structure: Q) -> Codes:
        """The format, group and planes of the stored codes."""

    def pack(self, structure: Q, factors: Factors) -> Packed:
        """Packed `codes` and their `scales`."""
        planes = factors["planes"] if "planes" in factors else factors["codes"][None]
        scales = cast(NDArray[np.float32], factors["scales"])
        scales = scales if scales.ndim == 3 else scales[None]
        blocks = -(-planes.shape[-1] // structure.block)
        scales = np.repeat(scales, structure.group // structure.block, axis=-1)[..., :blocks]
        return self.source(structure).pack(cast(NDArray[np.int8], planes), scales)

    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: Q,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """One kernel; before it one that rounds x, if activations are int8."""
        rounded = structure.activations == "int8"
        spec = Matmul(in_features, out_features, self.source(structure), rounded=rounded)
        flat = Flat(builder, x)
        y = flat.multiply(structure.kind, spec, flat.x, [packed["codes"], packed["scales"]])
        return flat.restore(y, out_features)
