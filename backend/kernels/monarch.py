"""Two block-diagonal matmuls; the first stores its outputs where the second reads them."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax

from ...passes.structures.base import Factors
from ...passes.structures.monarch import Monarch
from .base import Kernel, Packed
from .blocks import interleave
from .emit import Flat
from .matmul import Matmul
from .sources import Floats


class MonarchKernel(Kernel[Monarch]):
    """Stores both factors in float32, a block of outputs in 16 lanes.

    `w1` is `[R, ceil(K·t / 16), n/R, 16]`, and `w2` is `[K, ceil(m/K / 16), R·t, 16]`.
    """

    def pack(self, structure: Monarch, factors: Factors) -> Packed:
        """Both factors with their outputs in lanes."""
        return {name: interleave(factors[name].swapaxes(-1, -2)) for name in ("w1", "w2")}

    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: Monarch,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """Two kernels; the transpose between them is in the columns that the first writes."""
        in_blocks, out_blocks = (int(packed[name].ty.shape[0]) for name in ("w1", "w2"))
        middle = int(packed["w2"].ty.shape[2])  # R·t
        rank = middle // in_blocks
        first = Matmul(in_features // in_blocks, out_blocks * rank, Floats(in_blocks), run=rank)
        second = Matmul(middle, out_features // out_blocks, Floats(out_blocks))
        flat = Flat(builder, x)
        hidden = flat.multiply("monarch_in", first, flat.x, [packed["w1"]])
        y = flat.multiply("monarch_out", second, hidden, [packed["w2"]])
        return flat.restore(y, out_features)
