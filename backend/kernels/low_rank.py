"""`y = (x down) up`, the two products in one function."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.structures.base import Factors
from ...passes.structures.low_rank import LowRank
from .base import Kernel, Packed, Shapes, Step
from .blocks import interleave
from .factored import Factored, factored_step


class LowRankKernel(Kernel[LowRank]):
    """Stores `down` `[1, ceil(r / 16), n, 16]` and `up` `[1, ceil(m / 16), r, 16]`, float32."""

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        return {name: interleave(factors[name].T[None]) for name in ("down", "up")}

    def steps(
        self, structure: LowRank, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel."""
        spec = Factored(out_features, in_features, 1, 1, rank=stored["up"][2])
        return [factored_step("low_rank", spec, ("down", "up"))]
