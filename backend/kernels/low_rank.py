"""`y = (x down) up`: two matmuls; the latent features are few and stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.structures.base import Factors
from ...passes.structures.low_rank import LowRank
from .base import Kernel, Output, Packed, Shapes, Step
from .blocks import interleave
from .matmul import Matmul, matmul
from .sources import Floats
from .targets import tiling


class LowRankKernel(Kernel[LowRank]):
    """Stores `down` `[1, ceil(r / 16), n, 16]` and `up` `[1, ceil(m / 16), r, 16]`, float32."""

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        return {name: interleave(factors[name].T[None]) for name in ("down", "up")}

    def steps(
        self, structure: LowRank, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """Two kernels."""
        rank = stored["up"][2]
        down = matmul(Matmul(in_features, rank, Floats()), tiling())
        up = matmul(Matmul(rank, out_features, Floats()), tiling())
        latent, y = Output("latent", rank, "float32"), Output("y", out_features, "float32")
        return [
            Step("low_rank_down", down, ("x", "down"), (latent,)),
            Step("low_rank_up", up, ("latent", "up"), (y,)),
        ]
