"""Two block-diagonal products around a transpose: block (k, r) of Ŵ has rank t (arXiv 2204.00595).

`h[b, r, (k, t)] = x[b, r, :] w1[r]`, then `y[b, k, :] = h[b, k, (r, t)] w2[k]`, with the inputs
in R contiguous blocks and the outputs in K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FitError, SchemeError
from ..linalg import block_svd, check_weight, fit_moment, monarch_product, monarch_projection
from ..stats import Stats
from .base import Factors, Form, Structure, parse_function, random_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

_PREFERRED_BLOCKS = (4, 8, 2, 16)
_SMALLEST_BLOCK = 32
"""Smaller blocks leave SIMD lanes and cores empty."""
_CANDIDATE_RATIOS = (0.25, 0.5)
_SWEEPS = 5
"""Twice as many lower the error by another 3 %."""

# The sizes are read off the constants w1 and w2, so that engines fold them; x may have any rank.
# The reshape before the first MatMul changes nothing: without it ONNX Runtime fuses Transpose and
# MatMul, which is no faster and divides by zero when x has no rows.
_FUNCTION = """
Monarch (x, w1, w2) => (y) {
  zero = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  two = Constant <value = int64[1] {2}> ()
  three = Constant <value = int64[1] {3}> ()
  any = Constant <value = int64[1] {-1}> ()
  w1_shape = Shape (w1)
  w2_shape = Shape (w2)
  x_shape = Shape (x)
  leading = Slice (x_shape, zero, any)
  R = Slice (w1_shape, zero, one)
  s = Slice (w1_shape, one, two)
  K_times_t = Slice (w1_shape, two, three)
  K = Slice (w2_shape, zero, one)
  R_times_t = Slice (w2_shape, one, two)
  p = Slice (w2_shape, two, three)
  t = Div (K_times_t, K)
  out_features = Mul (K, p)

  in_shape = Concat <axis = 0> (any, R, s)
  x_blocks = Reshape (x, in_shape)
  x_swapped = Transpose <perm = [1, 0, 2]> (x_blocks)
  x_by_block_shape = Concat <axis = 0> (R, any, s)
  x_by_block = Reshape (x_swapped, x_by_block_shape)
  hidden = MatMul (x_by_block, w1)

  hidden_shape = Concat <axis = 0> (R, any, K, t)
  hidden_split = Reshape (hidden, hidden_shape)
  hidden_swapped = Transpose <perm = [2, 1, 0, 3]> (hidden_split)
  middle_shape = Concat <axis = 0> (K, any, R_times_t)
  middle = Reshape (hidden_swapped, middle_shape)

  y_by_block = MatMul (middle, w2)
  y_blocks = Transpose <perm = [1, 0, 2]> (y_by_block)
  out_shape = Concat <axis = 0> (leading, out_features)
  y = Reshape ALLOWZERO (y_blocks, out_shape)
}
"""


@dataclass(frozen=True)
class Monarch(Structure):
    """Ŵ of R×K blocks, each of rank t: `t (K n + R m)` parameters for an `m×n` weight.

    Factors: `w1`, `[R, n/R, K·t]`, and `w2`, `[K, R·t, m/K]`, float32.

    Attributes:
        ratio: the share of parameters that is kept; 0.5 if neither it nor `rank` is given.
        blocks: R = K; if no number of blocks is given, one that divides both dimensions.
        in_blocks: R, together with `out_blocks` and instead of `blocks`.
        out_blocks: K.
        rank: t, instead of `ratio`.
        fit_: `block_svd` fits to the statistics (and without any is the same as the other);
            `projection` is the closed form that ignores them.
    """

    kind: ClassVar[str] = "monarch"
    op_type: ClassVar[str] = "Monarch"

    ratio: float | None = None
    blocks: int | None = None
    in_blocks: int | None = None
    out_blocks: int | None = None
    rank: int | None = None
    fit_: Literal["block_svd", "projection"] = "block_svd"

    def __post_init__(self) -> None:
        if self.ratio is not None and self.rank is not None:
            raise SchemeError("ratio and rank exclude each other; give one of them")
        if (self.in_blocks is None) != (self.out_blocks is None):
            raise SchemeError("in_blocks and out_blocks go together; give both, or blocks")
        if self.blocks is not None and self.in_blocks is not None:
            raise SchemeError("blocks stands for in_blocks and out_blocks; give one or the others")
        if self.ratio is None and self.rank is None:
            object.__setattr__(self, "ratio", 0.5)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SchemeError(f"ratio is above 0 and at most 1, not {self.ratio}")
        for name in ("blocks", "in_blocks", "out_blocks", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SchemeError(f"{name} is at least 1, not {value}")

    @classmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[Structure]:
        """A quarter and a half of the parameters, in the block counts that divide the shape."""
        options = [
            cls(ratio=ratio, blocks=blocks).resolve(out_features, in_features, site="candidates")
            for blocks in _block_counts(out_features, in_features)
            for ratio in _CANDIDATE_RATIOS
        ]
        return list(dict.fromkeys(options))

    def resolve(self, out_features: int, in_features: int, *, site: str) -> Monarch:
        """`t = ⌊ratio · mn / (K n + R m)⌋`, at least 1, in blocks that divide both dimensions."""
        in_blocks, out_blocks = self._block_numbers(out_features, in_features, site)
        _check_divides(site, "in_features", in_features, in_blocks)
        _check_divides(site, "out_features", out_features, out_blocks)
        rank = self.rank
        if rank is None:
            assert self.ratio is not None
            exact = _rank_of(self.ratio, out_features, in_features, in_blocks, out_blocks)
            rank = max(1, math.floor(exact))
        full = min(in_features // in_blocks, out_features // out_blocks)
        if rank > full:
            raise FitError(
                site,
                f"rank {rank} is more than a block of "
                f"{out_features // out_blocks}×{in_features // in_blocks} has",
                f"choose a rank up to {full}, a ratio, or fewer blocks",
            )
        if in_blocks == out_blocks:
            return Monarch(blocks=in_blocks, rank=rank, fit_=self.fit_)
        return Monarch(in_blocks=in_blocks, out_blocks=out_blocks, rank=rank, fit_=self.fit_)

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """Block SVD under the damped second moment, or the closed form; nothing is random."""
        target = check_weight(weight, site)
        in_blocks, out_blocks, rank = self.resolve(*target.shape, site=site)._sizes
        moment = fit_moment(stats, target.shape[1], site)
        if moment is None or self.fit_ == "projection":
            first, second = monarch_projection(target, in_blocks, out_blocks, rank)
        else:
            first, second = block_svd(target, moment, in_blocks, out_blocks, rank, _SWEEPS)
        return {
            "w1": np.ascontiguousarray(first, np.float32),
            "w2": np.ascontiguousarray(second, np.float32),
        }

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Random blocks."""
        random, (in_blocks, out_blocks, rank) = np.random.default_rng(seed), self._sizes
        first = (in_blocks, in_features // in_blocks, out_blocks * rank)
        second = (out_blocks, in_blocks * rank, out_features // out_blocks)
        return {"w1": random_matrix(random, *first), "w2": random_matrix(random, *second)}

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """Block (k, r) is the product of the k-th part of `w1[r]` and the r-th of `w2[k]`."""
        first, second = (factors[name].astype(np.float64) for name in ("w1", "w2"))
        return monarch_product(first, second)

    def bits(self, out_features: int, in_features: int) -> int:
        """Two float32 tensors."""
        return 32 * self.macs(out_features, in_features)

    def macs(self, out_features: int, in_features: int) -> int:
        """One a parameter."""
        in_blocks, out_blocks, rank = self._sizes
        return rank * (out_blocks * in_features + in_blocks * out_features)

    def function(self, form: Form, opset: int) -> ir.Function:
        """Two batched MatMuls with one transpose between them, in either form."""
        # Without allowzero a 0 in the shape means "as before", which fits most empty batches.
        allow_zero = "<allowzero = 1>" if opset >= 14 else ""
        return parse_function(_FUNCTION.replace("ALLOWZERO", allow_zero), opset)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """R, K and t."""
        in_blocks, out_blocks = self.blocks or self.in_blocks, self.blocks or self.out_blocks
        if in_blocks is None or out_blocks is None or self.rank is None:
            raise SchemeError(f"{self} has no sizes yet; resolve it for a shape first")
        return in_blocks, out_blocks, self.rank

    def _block_numbers(self, out_features: int, in_features: int, site: str) -> tuple[int, int]:
        if self.blocks is not None:
            return self.blocks, self.blocks
        if self.in_blocks is not None and self.out_blocks is not None:
            return self.in_blocks, self.out_blocks
        counts = _block_counts(out_features, in_features)
        if not counts:
            raise FitError(
                site,
                f"no number of blocks divides both out_features {out_features} and "
                f"in_features {in_features}",
                "give in_blocks and out_blocks, or choose another scheme",
            )
        if self.ratio is None:
            return counts[0], counts[0]
        for blocks in counts:
            if _rank_of(self.ratio, out_features, in_features, blocks, blocks) >= 1:
                return blocks, blocks
        return min(counts), min(counts)


def _rank_of(
    ratio: float, out_features: int, in_features: int, in_blocks: int, out_blocks: int
) -> float:
    """The rank that keeps `ratio` of the parameters, not rounded."""
    a_rank = out_blocks * in_features + in_blocks * out_features
    return ratio * out_features * in_features / a_rank + 1e-9


def _block_counts(out_features: int, in_features: int) -> list[int]:
    """Block counts that divide both dimensions, best first."""
    common = math.gcd(out_features, in_features)
    counts = [count for count in _PREFERRED_BLOCKS if common % count == 0]
    if not counts:
        return [count for count in range(3, common + 1) if common % count == 0][:1]
    smaller = min(out_features, in_features)
    wide = [count for count in counts if smaller // count >= _SMALLEST_BLOCK]
    return wide or counts


def _check_divides(site: str, name: str, features: int, blocks: int) -> None:
    if features % blocks == 0:
        return
    divisors = [count for count in range(1, features + 1) if features % count == 0]
    below = [str(count) for count in divisors if count < blocks][-2:]
    above = [str(count) for count in divisors if count > blocks][:2]
    raise FitError(
        site,
        f"{name} {features} does not divide into {blocks} blocks",
        f"choose {' or '.join(below + above)} blocks",
    )
