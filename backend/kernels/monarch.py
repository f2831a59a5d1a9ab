"""Monarch: two block-diagonal products and the permutation between them in one function."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.structures.base import Factors
from ...passes.structures.monarch import Monarch
from .base import Kernel, Packed, Shapes, Step
from .blocks import interleave
from .factored import Factored, factored_step


class MonarchKernel(Kernel[Monarch]):
    """Stores both factors in float32, a block of outputs in 16 lanes.

    `w1` is `[R, ceil(K·t / 16), n/R, 16]`, and `w2` is `[K, ceil(m/K / 16), R·t, 16]`.
    """

    def pack(self, structure: Monarch, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        return {name: interleave(factors[name].swapaxes(-1, -2)) for name in ("w1", "w2")}

    def steps(
        self, structure: Monarch, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel."""
        (in_blocks, *_), (out_blocks, _, middle, _) = stored["w1"], stored["w2"]
        spec = Factored(out_features, in_features, in_blocks, out_blocks, middle // in_blocks)
        return [factored_step("monarch", spec, ("w1", "w2"))]
