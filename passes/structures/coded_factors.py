"""Both factors of low rank as 8-bit codes, the second fitted to the first as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError
from ..linalg import Matrix, damped
from .base import Factors, Form, parse_function
from .block_quantized import PORTABLE_OPSET
from .int_codes import IntCodes
from .levels import integer_codes

if TYPE_CHECKING:
    import onnx_ir as ir

T = TypeVar("T")

FACTORS = ("down", "up")

_GROUPS = (128, 64, 32, 16)
_REFIT_RIDGE = 1e-6
_HALF = 128

_PACKED = """
LowRank <N, K, rank, down_block, up_block>
    (x, down_codes, down_scales, up_codes, up_scales) => (y) {
  latent = com.microsoft.MatMulNBits
      <N: int = @rank, K: int = @K, bits: int = 8, block_size: int = @down_block>
      (x, down_codes, down_scales)
  y = com.microsoft.MatMulNBits
      <N: int = @N, K: int = @rank, bits: int = 8, block_size: int = @up_block>
      (latent, up_codes, up_scales)
}
"""
_PORTABLE = """
LowRank <down_block, up_block> (x, down_codes, down_scales, up_codes, up_scales) => (y) {
  down = DequantizeLinear <axis: int = 0, block_size: int = @down_block> (down_codes, down_scales)
  up = DequantizeLinear <axis: int = 0, block_size: int = @up_block> (up_codes, up_scales)
  latent = MatMul (x, down)
  y = MatMul (latent, up)
}
"""


@dataclass(frozen=True)
class CodedFactors:
    """`Ŵ = U D`, D `[rank, in_features]` and U `[out_features, rank]` each as `IntCodes` of 8 bits.

    Factors: `down_codes`, `down_scales`, `up_codes` and `up_scales`. Neither x nor the latent
    features are rounded: a value of these that tips over a boundary would change all outputs.

    Attributes:
        rank: of the product.
    """

    rank: int

    def parts(self, in_features: int) -> dict[str, IntCodes]:
        """The codes of each factor."""
        columns = zip(FACTORS, (in_features, self.rank), strict=True)
        return {
            name: IntCodes(bits_=8, group=_group(count), activations="float")
            for name, count in columns
        }

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, int]]:
        """The shape of each factor."""
        return {"down": (self.rank, in_features), "up": (out_features, self.rank)}

    def fit(self, weight: Matrix, moment: Matrix | None, down: Matrix) -> Factors:
        """The codes of D, then those of the U that is best for D as it is stored.

        D is rounded under the second moment of x, U under that of the latent features.

        Args:
            weight: W.
            moment: C, damped, or None for the identity.
            down: `[in_features, rank]`, the best one that is not rounded.
        """
        down_part, up_part = self.parts(weight.shape[1]).values()
        codes, scales = integer_codes(down.T, moment, -_HALF, _HALF - 1, down_part.group)
        stored = down_part.dense({"codes": codes, "scales": scales})
        weighted = stored if moment is None else stored @ moment
        latent = weighted @ stored.T
        latent = (latent + latent.T) / 2
        up = np.linalg.solve(damped(latent, _REFIT_RIDGE), weighted @ weight.T)
        wanted = np.asarray(up.T, np.float64)
        up_codes, up_scales = integer_codes(
            wanted, damped(latent), -_HALF, _HALF - 1, up_part.group
        )
        return {
            "down_codes": codes,
            "down_scales": scales,
            "up_codes": up_codes,
            "up_scales": up_scales,
        }

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Random codes and scales of both."""
        shapes = self.shapes(out_features, in_features)
        return {
            f"{name}_{suffix}": factor
            for name, part in self.parts(in_features).items()
            for suffix, factor in part.random_factors(*shapes[name], seed=seed).items()
        }

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """`U D`."""
        parts = self.parts(factors["down_codes"].shape[1])
        down, up = (part.dense(named(factors, name)) for name, part in parts.items())
        return up @ down

    def bits(self, out_features: int, in_features: int) -> int:
        """Those of both."""
        shapes = self.shapes(out_features, in_features)
        return sum(part.bits(*shapes[name]) for name, part in self.parts(in_features).items())

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """The tensors of `down`, then those of `up`."""
        return {
            f"{name}_{suffix}": tensor
            for name, part in self.parts(factors["down_codes"].shape[1]).items()
            for suffix, tensor in part.pack(named(factors, name), form).items()
        }

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form."""
        shapes = self.shapes(out_features, in_features)
        return {
            f"{name}_{suffix}": factor
            for name, part in self.parts(in_features).items()
            for suffix, factor in part.unpack(named(tensors, name), *shapes[name]).items()
        }

    def attributes(self, out_features: int, in_features: int, form: Form) -> dict[str, int]:
        """The sizes of both products, and their blocks."""
        columns = {"down": in_features, "up": self.rank}
        blocks = {
            f"{name}_block": part.block_in(form, columns[name])
            for name, part in self.parts(in_features).items()
        }
        return {"N": out_features, "K": in_features, "rank": self.rank, **blocks}

    def function(self, form: Form, opset: int) -> ir.Function:
        """Two MatMulNBits, or two DequantizeLinear and MatMul.

        Raises:
            LoweringError: the portable form below opset 21, which has no blocked DequantizeLinear.
        """
        if form != "portable":
            return parse_function(_PACKED, opset, contrib=True)
        if opset < PORTABLE_OPSET:
            raise LoweringError(
                f"low_rank{{factor_bits=8}}: the portable form needs opset {PORTABLE_OPSET} and "
                f"the model has {opset}; raise its opset or take the fast form"
            )
        return parse_function(_PORTABLE, opset)


def named(tensors: Mapping[str, T], name: str) -> dict[str, T]:
    """What belongs to one factor, by its name without that of the factor."""
    return {
        key.removeprefix(f"{name}_"): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{name}_")
    }


def _group(columns: int) -> int:
    """The largest group that divides them, so that nothing is filled; 32 if none does."""
    return next((group for group in _GROUPS if columns % group == 0), 32)
