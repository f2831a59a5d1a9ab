"""`y = (x down) up`, the two products in one function if they are of floats."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.structures.base import Factors
from ...passes.structures.int_codes import IntCodes
from ...passes.structures.low_rank import LowRank
from .base import Kernel, Packed, Shapes, Step
from .blocks import interleave
from .coded_factors import CodedFactorsKernel
from .factored import Factored, factored_step


class LowRankKernel(Kernel[LowRank]):
    """Stores `down` `[1, ceil(r / 16), n, 16]` and `up` `[1, ceil(m / 16), r, 16]`, float32.

    Factors in codes are those of `CodedFactorsKernel`.
    """

    def __init__(self, codes: Kernel[IntCodes]) -> None:
        self.coded = CodedFactorsKernel(codes)

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        if structure.coded is not None:
            return self.coded.pack(structure, factors)
        return {name: interleave(factors[name].T[None]) for name in ("down", "up")}

    def steps(
        self, structure: LowRank, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel, or two of codes."""
        if structure.coded is not None:
            return self.coded.steps(structure, out_features, in_features, stored)
        spec = Factored(out_features, in_features, 1, 1, rank=stored["up"][2])
        return [factored_step("low_rank", spec, ("down", "up"))]
