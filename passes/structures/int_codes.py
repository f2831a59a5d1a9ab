"""`Ŵ[i, j] = c[i, j] · scale[i, j // group]`: integer codes of 3 to 8 bits with group scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError, SchemeError
from ..linalg import check_weight, fit_moment
from ..stats import Stats
from .base import Activations, Factors, Form, parse_function
from .block_quantized import (
    CUDA_OPSET,
    PORTABLE_OPSET,
    BlockQuantized,
    Term,
    block_scales,
    group_count,
    group_scales,
    is_portable,
    largest_group,
    pack_codes,
    pack_portable,
    packed_function,
    portable_function,
    random_codes,
    random_scales,
    scaled,
    unpack_codes,
    unpack_portable,
)
from .levels import integer_codes

if TYPE_CHECKING:
    import onnx_ir as ir

_CANDIDATE_BITS: tuple[Literal[3, 4, 6, 8], ...] = (8, 4, 3)

_GATHER_OPSETS: Mapping[Form, int] = {"fast": 13, "cuda": CUDA_OPSET, "portable": PORTABLE_OPSET}

# Shapes come from `scales` and `indices`, so that one function serves every table and bit width.
_GATHER = """
IntCodesGather <N, K, bits, block_size, accuracy_level> (indices, codes, scales) => (rows) {
  bits_ = Constant <value_int: int = @bits> ()
  block = Constant <value_int: int = @block_size> ()
  columns = Constant <value_int: int = @K> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  two = Constant <value_int: int = 2> ()
  eight = Constant <value_int: int = 8> ()
  last = Constant <value_ints: ints = [-1]> ()
  first = Constant <value_ints: ints = [0]> ()
  levels = Pow(two, bits_)
  base = Cast <to: int = 6> (levels)
  half_levels = Div(levels, two)
  half = Cast <to: int = 6> (half_levels)
  shifts = Range(zero, eight, bits_)
  wide_divisors = Pow(two, shifts)
  divisors = Cast <to: int = 6> (wide_divisors)
  bytes = Gather <axis: int = 0> (codes, indices)
  wide = Cast <to: int = 6> (bytes)
  column = Unsqueeze(wide, last)
  shifted = Div(column, divisors)
  fields = Mod(shifted, base)
  signed = Sub(fields, half)
  scale = Gather <axis: int = 0> (scales, indices)
  scale_shape = Shape(scale)
  blocks = Unsqueeze(block, first)
  group_shape = Concat <axis: int = 0> (scale_shape, blocks)
  grouped = Reshape(signed, group_shape)
  values = Cast <to: int = 1> (grouped)
  scale_column = Unsqueeze(scale, last)
  weighted = Mul(values, scale_column)
  table_shape = Shape(scales)
  groups = Gather <axis: int = 0> (table_shape, one)
  width = Mul(groups, block)
  widths = Unsqueeze(width, first)
  index_shape = Shape(indices)
  row_shape = Concat <axis: int = 0> (index_shape, widths)
  filled = Reshape(weighted, row_shape)
  end = Unsqueeze(columns, first)
  rows = Slice(filled, first, end, last)
}
"""
_TO_FLOAT = "Cast <to: int = 1> (grouped)"

_PORTABLE_GATHER = """
IntCodesGather <block_size> (indices, codes, scales) => (rows) {
  last = Constant <value_ints: ints = [-1]> ()
  flat = Reshape(indices, last)
  columns = Gather <axis: int = 1> (codes, flat)
  column_scales = Gather <axis: int = 1> (scales, flat)
  values = DequantizeLinear <axis: int = 0, block_size: int = @block_size> (columns, column_scales)
  listed = Transpose <perm: ints = [1, 0]> (values)
  index_shape = Shape(indices)
  table_shape = Shape <end: int = 1> (codes)
  row_shape = Concat <axis: int = 0> (index_shape, table_shape)
  rows = Reshape(listed, row_shape)
}
"""


@dataclass(frozen=True)
class IntCodes(BlockQuantized):
    """Codes of `bits` bits and a float32 scale for each row and group of columns.

    The compensated fit is GPTQ (arXiv 2210.17323) with act-order and contiguous groups, under the
    second moment of the inputs; without statistics, and with `fit=nearest`, which sees none, every
    weight is rounded to the nearest level. The whole range is used, −2^(bits−1) to 2^(bits−1) − 1,
    and a scale may be negative. Factors: `codes`, int8 `[m, n]`, and `scales`, float32
    `[m, ceil(n / group)]`.

    In model.onnx the packed forms are one MatMulNBits: `codes` uint8 `[m, blocks, block · b / 8]`,
    low bits first, with the default zero point 2^(b−1), b = 8 for 6 and 8 bits and 4 for 3 and 4
    bits, since there are no kernels of 3 and 6. A block is a group, or a part of one where the
    engine has no kernel for so large a block. The portable form is DequantizeLinear of INT4 or INT8
    `[n, m]` and MatMul.

    Attributes:
        bits: of a code.
        group: columns that share a scale; the last group may be partial.
        activations: whether x is rounded to int8; see `BlockQuantized`.
        fit_: the method, `fit` in scheme texts.
    """

    kind: ClassVar[str] = "int_codes"
    op_type: ClassVar[str] = "IntCodes"
    gathers: ClassVar[bool] = True

    bits_: Literal[3, 4, 6, 8] = 8
    group: int = 128
    activations: Activations = "auto"
    fit_: Literal["compensated", "nearest"] = "compensated"

    def __post_init__(self) -> None:
        if self.bits_ not in (3, 4, 6, 8):
            raise SchemeError(f"bits is one of 3, 4, 6, 8, not {self.bits_}")
        self._check_group()

    @classmethod
    def candidates(cls, out_features: int, in_features: int) -> Sequence[IntCodes]:
        """8, 4 and 3 bits in the largest group up to 128 that divides in_features, 4 in 32 too.

        Also in the default group where it does not divide: that can be smaller, and faster.
        """
        groups = dict.fromkeys([cls().group, largest_group(in_features)])
        options = [cls(bits_=bits, group=group) for group in groups for bits in _CANDIDATE_BITS]
        return list(dict.fromkeys([*options, cls(bits_=4, group=32)]))

    def resolve(self, out_features: int, in_features: int, *, site: str) -> IntCodes:
        """Itself: every shape admits it."""
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """One node, of 8 bits for 6 and 8 and of 4 bits for 3 and 4."""
        return (Term(self._container),)

    @property
    def _container(self) -> Literal[4, 8]:
        return 8 if self.bits_ > 4 else 4

    def fit(
        self, weight: NDArray[np.floating], stats: Stats | None, *, seed: int, site: str
    ) -> Factors:
        """Codes and scales; there is nothing random in it."""
        target = check_weight(weight, site)
        moment = fit_moment(stats, target.shape[1], site)
        half = 2 ** (self.bits_ - 1)
        codes, scales = integer_codes(
            target, None if self.fit_ == "nearest" else moment, -half, half - 1, self.group
        )
        return {"codes": codes, "scales": scales}

    def random_factors(self, out_features: int, in_features: int, *, seed: int) -> Factors:
        """Codes out of the whole range, and scales by which weights stay below one."""
        random, half = np.random.default_rng(seed), 2 ** (self.bits_ - 1)
        codes = random_codes(random, -half, half - 1, out_features, in_features)
        groups = group_count(in_features, self.group)
        return {"codes": codes, "scales": random_scales(random, half, out_features, groups)}

    def dense(self, factors: Factors) -> NDArray[np.float64]:
        """Codes times the scale of their group."""
        return scaled(factors["codes"], factors["scales"], self.group)

    def macs(self, out_features: int, in_features: int) -> int:
        """As many as the dense weight has."""
        return out_features * in_features

    def pack(self, factors: Factors, form: Form) -> dict[str, ir.TensorProtocol]:
        """`codes` and `scales`, as MatMulNBits or as a blocked DequantizeLinear takes them."""
        import onnx_ir as ir

        codes = factors["codes"].astype(np.int8)
        block = self.block_in(form, codes.shape[-1])
        scales = block_scales(factors["scales"], self.group, block, codes.shape[-1])
        if form == "portable":
            transposed = np.ascontiguousarray(scales.T)
            return {
                "codes": pack_portable(codes, self._container),
                "scales": ir.tensor(transposed),
            }
        packed = pack_codes(codes, self._container, block)
        return {"codes": packed, "scales": ir.tensor(scales)}

    def unpack(
        self, tensors: Mapping[str, ir.TensorProtocol], out_features: int, in_features: int
    ) -> Factors:
        """The inverse of `pack` in either form."""
        if is_portable(tensors["codes"]):
            scales = np.ascontiguousarray(tensors["scales"].numpy().T)
            return {"codes": unpack_portable(tensors["codes"]), "scales": scales}
        codes = unpack_codes(tensors["codes"], self._container, in_features)
        scales = group_scales(tensors["scales"], tensors["codes"], self._container, self.group)
        return {"codes": codes, "scales": scales}

    def function(self, form: Form, opset: int) -> ir.Function:
        """One MatMulNBits, or DequantizeLinear and MatMul."""
        if form == "portable":
            return portable_function(self.op_type, 1, opset)
        return packed_function(self.op_type, self.terms, opset)

    def gathers_in(self, form: Form) -> bool:
        """In the portable form only what is stored in 8 bits: ONNX cannot gather 4-bit integers."""
        return form != "portable" or self._container == 8

    def gather_function(self, form: Form, opset: int) -> ir.Function:
        """Rows from the tensors of the matmul, by standard operators; only these are dequantised.

        Raises:
            LoweringError: below opset 13 (15 for CUDA, 21 for the portable form), or 3 and 4 bits
                in the portable form, since ONNX cannot gather 4-bit integers.
        """
        self._want_opset(opset, _GATHER_OPSETS[form])
        if form == "fast":
            return parse_function(_GATHER, opset)
        if form == "cuda":  # there the scales have the type of the model
            return parse_function(_GATHER.replace(_TO_FLOAT, "CastLike(grouped, scale)"), opset)
        if not self.gathers_in(form):
            raise LoweringError(
                f"{self}: ONNX cannot gather rows of 4-bit integers in the portable form; "
                "choose 8 bits for this embedding or the fast form"
            )
        return parse_function(_PORTABLE_GATHER, opset)

    def _want_opset(self, opset: int, least: int) -> None:
        if opset < least:
            raise LoweringError(
                f"{self}: the gather of an embedding needs opset {least} and the model has "
                f"{opset}; raise its opset or keep the embedding dense"
            )
