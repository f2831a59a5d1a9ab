"""`y = x Qᵀ + (x down) up`: codes and, of what they miss, the part of low rank that counts most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import FitError, SchemeError
from ..linalg import check_weight, fit_moment, relative_error
from ..stats import Stats
from .base import Activations, Factors, Form, Structure
from .block_quantized import largest_group
from .int_codes import IntCodes
from .low_rank import LowRank
from .trit_planes import TritPlanes

if TYPE_CHECKING:
    import onnx_ir as ir

Part = TypeVar("Part")

_ROUNDS = 3
"""Three more would lower the error by another 3 to 4 %."""
_FOUR_BITS = IntCodes(bits_=4)
_CANDIDATE_RANKS = (16, 32)
_LOW_RANK = ("down", "up")
"""Names of the factors and of the packed tensors that are not those of the codes."""


@dataclass(frozen=True)
class Residual(Structure):
    """`Ŵ = Q + L` with Q in codes and L of low rank, fitted in turns.

    L is the best one for `W − Q` (QERA-exact, arXiv 2410.06040), Q the codes of `W − L`; the pair
    with the least error of a few rounds is kept. Without statistics both are data-free.

    x may be rounded for Q alone: the product with L is one of floats. Factors: those of the codes,
    and `down` and `up` as in `LowRank`.

    Attributes:
        codes: Q, which the scheme text has before the `+`.
        rank: of L.
    """

    kind: ClassVar[str] = "residual"
    op_type: ClassVar[str] = "Residual"

    codes: IntCodes | TritPlanes = _FOUR_BITS
    rank: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.codes, IntCodes | TritPlanes):
            raise SchemeError(
                f"a residual stands behind int_codes or trit_planes, not behind {self.codes}"
            )
        if self.rank < 1:
            raise SchemeError(f"rank is at least 1, not {self.rank}")

    def __str__(self) -> str:
        """The text of the codes, and behind it that of the residual."""
        return f"{self.codes}+{self.kind}{{rank={self.rank}}}"

    @property
    def low_rank(self) -> LowRank:
        """L by itself."""
        return LowRank(rank=self.rank)

    @property
    def activations(self) -> Activations | None:
        """Those of the codes."""
        return self.codes.activations

    def with_activations(self, activations: Activations) -> Self:
        """The same structure with another value in its codes."""
        return replace(self, codes=self.codes.with_activations(activations))

    @classmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[Structure]:
        """Candidates for codes in groups without filling, with the ranks 16 and 32 of the shape."""
        shape = (out_features, in_features)
        every: list[IntCodes | TritPlanes] = [
            *IntCodes.candidates(*shape),
            *TritPlanes.candidates(*shape),
        ]
        ranks = [rank for rank in _CANDIDATE_RANKS if rank <= min(shape)]
        largest = largest_group(in_features)
        return [cls(codes, rank) for codes in every for rank in ranks if codes.group <= largest]

    def resolve(self, out_features: int, in_features: int, *, site: str) -> Residual:
        """Itself: nothing in it is relative."""
        full = min(out_features, in_features)
        if self.rank > full:
            raise FitError(
                site,
                f"a residual of rank {self.rank} is more than a {out_features}×{in_features} "
                "weight has",
                f"choose a rank up to {full}, or codes alone",
            )
        return self

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """Codes and low rank in turns; there is nothing random in it."""
        target = check_weight(weight, site)
        self.resolve(*target.shape, site=site)
        moment = fit_moment(stats, target.shape[1], site)
        best: Factors = {}
        least, thin = np.inf, np.zeros_like(target)
        for _ in range(_ROUNDS):
            codes = self.codes.fit(target - thin, stats, seed=seed, site=site)
            coded = self.codes.dense(codes)
            factors = self.low_rank.fit(target - coded, stats, seed=seed, site=site)
            thin = self.low_rank.dense(factors)
            error = relative_error(target, coded + thin, moment)
            if error < least:
                best, least = {**codes, **factors}, error
        return best

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Those of both."""
        shape = (out_features, in_features)
        codes = self.codes.random_factors(*shape, seed=seed)
        return {**codes, **self.low_rank.random_factors(*shape, seed=seed)}

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """`Q + L`."""
        codes, thin = split(factors)
        return self.codes.dense(codes) + self.low_rank.dense(thin)

    def reference(self, factors: Factors, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """`x Qᵀ`, of the rounded x if the codes want that, and `x Lᵀ`."""
        codes, thin = split(factors)
        return self.codes.reference(codes, x) + self.low_rank.reference(thin, x)

    def bits(self, out_features: int, in_features: int) -> int:
        """Those of both."""
        shape = (out_features, in_features)
        return self.codes.bits(*shape) + self.low_rank.bits(*shape)

    def macs(self, out_features: int, in_features: int) -> int:
        """Those of both."""
        shape = (out_features, in_features)
        return self.codes.macs(*shape) + self.low_rank.macs(*shape)

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """The tensors of the codes, then `down` and `up`."""
        codes, thin = split(factors)
        return {**self.codes.pack(codes, form), **self.low_rank.pack(thin, form)}

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form."""
        codes, thin = split(tensors)
        shape = (out_features, in_features)
        return {**self.codes.unpack(codes, *shape), **self.low_rank.unpack(thin, *shape)}

    def attributes(self, out_features: int, in_features: int, form: Form) -> dict[str, int]:
        """Those of the codes."""
        return self.codes.attributes(out_features, in_features, form)

    def function(self, form: Form, opset: int) -> ir.Function:
        """The body of the codes' function, and behind it two MatMuls and a Sum.

        It is a Sum since ONNX Runtime turns the Add of a product into a Gemm, which is slower.
        """
        import onnx_ir as ir

        function = self.codes.function(form, opset)
        (x, *_), (coded,) = function.inputs, function.outputs
        coded.name = "coded"
        down, up, latent, residual, y = (
            ir.Value(name=name) for name in (*_LOW_RANK, "latent", "residual", "y")
        )
        function.extend(
            [
                ir.Node("", "MatMul", [x, down], outputs=[latent]),
                ir.Node("", "MatMul", [latent, up], outputs=[residual]),
                ir.Node("", "Sum", [coded, residual], outputs=[y]),
            ]
        )
        function.inputs.extend([down, up])
        function.outputs[:] = [y]
        function.name = self.op_type
        return function


def split(parts: Mapping[str, Part]) -> tuple[dict[str, Part], dict[str, Part]]:
    """What belongs to the codes, and what to the low rank."""
    return (
        {name: part for name, part in parts.items() if name not in _LOW_RANK},
        {name: parts[name] for name in _LOW_RANK},
    )
