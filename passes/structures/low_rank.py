"""`y = (x down) up`: a weight of low rank, `Ŵ = (down up)ᵀ`, optimal for the inputs it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FitError, SchemeError
from ..linalg import check_weight, fit_moment, project_low_rank
from ..stats import Stats
from .base import Activations, Factors, Form, Structure, parse_function, random_matrix
from .coded_factors import CodedFactors

if TYPE_CHECKING:
    import onnx_ir as ir

_CANDIDATE_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75)
_CANDIDATE_BITS: tuple[Literal[8, 32], ...] = (32, 8)
_RANK_STEP = 16
"""Tuned kernels are full at multiples of 16."""

_FUNCTION = """
LowRank (x, down, up) => (y) {
  latent = MatMul(x, down)
  y = MatMul(latent, up)
}
"""


@dataclass(frozen=True)
class LowRank(Structure):
    """`Ŵ = U_r U_rᵀ W`, with U_r the leading eigenvectors of `W C Wᵀ` (SVD-LLM, arXiv 2403.07378).

    Without statistics `C = I`, and this is the truncated SVD. Factors: `down`, `[in_features,
    rank]`, and `up`, `[rank, out_features]`, float32; with 8 bits those of `CodedFactors`.

    Attributes:
        ratio: the share of parameters that is kept; 0.5 if neither is given.
        rank: the number of latent features, instead of `ratio`.
        factor_bits: of a stored parameter. There is no 16: CPUs do not compute in halves, and on
            GPUs the factors of a model in halves are halves.
    """

    kind: ClassVar[str] = "low_rank"
    op_type: ClassVar[str] = "LowRank"

    ratio: float | None = None
    rank: int | None = None
    factor_bits: Literal[8, 32] = 32

    def __post_init__(self) -> None:
        if self.ratio is not None and self.rank is not None:
            raise SchemeError("ratio and rank exclude each other; give one of them")
        if self.ratio is None and self.rank is None:
            object.__setattr__(self, "ratio", 0.5)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SchemeError(f"ratio is above 0 and at most 1, not {self.ratio}")
        if self.rank is not None and self.rank < 1:
            raise SchemeError(f"rank is at least 1, not {self.rank}")
        if self.factor_bits not in (8, 32):
            raise SchemeError(f"factor_bits is one of 8, 32, not {self.factor_bits}")

    @classmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[Structure]:
        """Ranks that keep a quarter to three quarters of the parameters, of 32 and of 8 bits.

        They go in steps of 16.
        """
        ranks = (_rank_of(ratio, out_features, in_features) for ratio in _CANDIDATE_RATIOS)
        snapped = sorted({rank // _RANK_STEP * _RANK_STEP or rank for rank in ranks})
        return [cls(rank=rank, factor_bits=bits) for bits in _CANDIDATE_BITS for rank in snapped]

    def resolve(self, out_features: int, in_features: int, *, site: str) -> LowRank:
        """`rank = ⌊ratio · mn / (m + n)⌋`, at least 1."""
        if self.ratio is not None:
            rank = _rank_of(self.ratio, out_features, in_features)
            return LowRank(rank=rank, factor_bits=self.factor_bits)
        full = min(out_features, in_features)
        if self._rank > full:
            raise FitError(
                site,
                f"rank {self._rank} is more than a {out_features}×{in_features} weight has",
                f"choose a rank up to {full} or a ratio",
            )
        return self

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """The optimal factors under the damped second moment; there is nothing random in it."""
        target = check_weight(weight, site)
        rank = self.resolve(*target.shape, site=site)._rank
        moment = fit_moment(stats, target.shape[1], site)
        down, up = project_low_rank(target, moment, rank)
        coded = self.coded
        if coded is not None:
            return coded.fit(target, moment, down)
        return {"down": _stored(down), "up": _stored(up)}

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Two random matrices, of floats or of codes."""
        coded = self.coded
        if coded is not None:
            return coded.random_factors(out_features, in_features, seed=seed)
        random, rank = np.random.default_rng(seed), self._rank
        return {
            "down": random_matrix(random, in_features, rank),
            "up": random_matrix(random, rank, out_features),
        }

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """`(down up)ᵀ`."""
        coded = self.coded
        if coded is not None:
            return coded.dense(factors)
        down, up = (factors[name].astype(np.float64) for name in ("down", "up"))
        return (down @ up).T

    def bits(self, out_features: int, in_features: int) -> int:
        """Two float32 matrices, or two of codes and their scales."""
        coded = self.coded
        if coded is not None:
            return coded.bits(out_features, in_features)
        return 32 * self.macs(out_features, in_features)

    def macs(self, out_features: int, in_features: int) -> int:
        """One a parameter."""
        return self._rank * (out_features + in_features)

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """Both factors, as they are or as codes are packed."""
        coded = self.coded
        return super().pack(factors, form) if coded is None else coded.pack(factors, form)

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form."""
        coded = self.coded
        if coded is not None:
            return coded.unpack(tensors, out_features, in_features)
        return super().unpack(tensors, out_features, in_features)

    def attributes(self, out_features: int, in_features: int, form: Form) -> dict[str, int]:
        """Those of the products with codes."""
        coded = self.coded
        return {} if coded is None else coded.attributes(out_features, in_features, form)

    def function(self, form: Form, opset: int) -> ir.Function:
        """Two MatMuls in either form, or two products with codes."""
        coded = self.coded
        return parse_function(_FUNCTION, opset) if coded is None else coded.function(form, opset)

    @property
    def activations(self) -> Activations | None:
        """Never rounded for coded factors, which not every engine can promise."""
        return "float" if self.factor_bits == 8 else None

    @property
    def coded(self) -> CodedFactors | None:
        """How factors of 8 bits are stored; None for those of 32."""
        return CodedFactors(self._rank) if self.factor_bits == 8 else None

    @property
    def _rank(self) -> int:
        if self.rank is None:
            raise SchemeError(f"{self} has no rank yet; resolve it for a shape first")
        return self.rank


def _rank_of(ratio: float, out_features: int, in_features: int) -> int:
    exact = ratio * out_features * in_features / (out_features + in_features)
    return max(1, math.floor(exact + 1e-9))


def _stored(factor: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(factor, np.float32)
