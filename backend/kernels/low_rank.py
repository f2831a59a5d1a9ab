"""`y = (x down) up`: two matmuls; the latent features are few and stay in the cache."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax

from ...passes.structures.base import Factors
from ...passes.structures.low_rank import LowRank
from .base import Kernel, Packed
from .blocks import interleave
from .emit import Flat
from .matmul import Matmul
from .sources import Floats


class LowRankKernel(Kernel[LowRank]):
    """Stores `down` `[1, ceil(r / 16), n, 16]` and `up` `[1, ceil(m / 16), r, 16]`, float32."""

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        return {name: interleave(factors[name].T[None]) for name in ("down", "up")}

    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: LowRank,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """Two kernels."""
        rank = int(packed["up"].ty.shape[2])
        flat = Flat(builder, x)
        down = Matmul(in_features, rank, Floats())
        up = Matmul(rank, out_features, Floats())
        latent = flat.multiply("low_rank_down", down, flat.x, [packed["down"]])
        y = flat.multiply("low_rank_up", up, latent, [packed["up"]])
        return flat.restore(y, out_features)
