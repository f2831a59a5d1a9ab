"""What all kernels of packed codes share: how they are stored and multiplied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ...passes.structures.base import Factors
from ...passes.structures.block_quantized import BlockQuantized
from .base import Kernel, Output, Packed, Shapes, Step
from .matmul import Matmul, matmul
from .rounding import round_activations, words_per_row
from .sources import Codes
from .targets import tiling

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

    def steps(
        self, structure: Q, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel; before it one that rounds x, if activations are int8."""
        source, rounded = self.source(structure), structure.activations == "int8"
        spec = Matmul(in_features, out_features, source, rounded=rounded)
        weights = ("codes", "scales")
        y = (Output("y", out_features, "float32"),)
        multiply = matmul(spec, tiling())
        if not rounded:
            return [Step(structure.kind, multiply, ("x", *weights), y)]
        outputs = (
            Output("x_codes", words_per_row(in_features, source.group), "int32"),
            Output("x_scales", -(-in_features // source.group), "float32"),
        )
        return [
            Step(
                "round_activations", round_activations(in_features, source.group), ("x",), outputs
            ),
            Step(structure.kind, multiply, ("x_codes", "x_scales", *weights), y),
        ]
