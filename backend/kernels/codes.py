"""What all kernels of packed codes share: how they are stored and multiplied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ...passes.structures.base import Factors
from ...passes.structures.block_quantized import BlockQuantized
from .base import Kernel, Output, Packed, Shapes, Step
from .code_products import code_product
from .code_task import CodeProduct
from .rounding import round_step
from .sources import Codes
from .targets import code_choices

Q = TypeVar("Q", bound=BlockQuantized)


class CodesKernel(Kernel[Q]):
    """Stores codes `[P, ceil(m / 16), words, 16]` and scales `[P, ceil(m / 16), groups, 16]`.

    P is the number of planes with scales of their own, else 1; lane l of block b is output
    `16 b + l`. A row's int32 words run along the inputs, as `formats` says. Scales are float32, one
    for each block of the engine.
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

    def steps(
        self, structure: Q, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel; before it one that rounds x, if activations are int8."""
        source, rounded = self.source(structure), structure.activations == "int8"
        spec = CodeProduct(out_features, in_features, source, rounded)
        kind = str(source.format) + ("_int8" if rounded else "")
        make = partial(code_product, spec, code_choices(kind, out_features, in_features))
        y = (Output("y", out_features, "float32"),)
        if not rounded:
            return [Step(structure.kind, make(), ("x", "codes", "scales"), y, make)]
        rounding = round_step(in_features, source.group)
        inputs = (*(output.name for output in rounding.outputs), "codes", "scales")
        return [rounding, Step(structure.kind, make(), inputs, y, make)]
