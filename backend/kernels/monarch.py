"""Two block-diagonal matmuls; the first stores its outputs where the second reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.structures.base import Factors
from ...passes.structures.monarch import Monarch
from .base import Kernel, Output, Packed, Shapes, Step
from .blocks import interleave
from .matmul import Matmul, matmul
from .sources import Floats
from .targets import tiling


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
        """Two kernels; the transpose between them is in the columns that the first writes."""
        (in_blocks, *_), (out_blocks, _, middle, _) = stored["w1"], stored["w2"]  # middle = R·t
        rank = middle // in_blocks
        first = Matmul(in_features // in_blocks, out_blocks * rank, Floats(in_blocks), run=rank)
        second = Matmul(middle, out_features // out_blocks, Floats(out_blocks))
        hidden = Output("hidden", in_blocks * out_blocks * rank, "float32")
        y = Output("y", out_features, "float32")
        return [
            Step("monarch_in", matmul(first, tiling()), ("x", "w1"), (hidden,)),
            Step("monarch_out", matmul(second, tiling()), ("hidden", "w2"), (y,)),
        ]
