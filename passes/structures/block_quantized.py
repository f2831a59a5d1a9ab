"""What codes with one scale a group share: packing for MatMulNBits, and the rounding of x.

`Ŵ[i, j] = c[i, j] · scale[i, j // group]`, and sums of such matrices. Groups lie along in_features;
the last one may be partial (576 by 128) and is filled with zero codes in the packed forms.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError, SchemeError
from ..linalg import Matrix
from .base import Activations, Factors, Form, Structure, parse_function
from .packing import pack_fields, unpack_fields

if TYPE_CHECKING:
    import onnx_ir as ir

Container = Literal[2, 4, 8]
"""Bits of a stored code in a packed form."""


@dataclass(frozen=True)
class Term:
    """One MatMulNBits of a packed form, `fast` or `cuda`.

    Attributes:
        bits: of a stored code.
        factor: its scales are this times the one tensor `scales`; None if it has its own.
    """

    bits: Container
    factor: float | None = 1.0


GROUPS = (16, 32, 64, 128, 256)
TWO_BIT_BLOCKS = (32, 64, 128)
"""Blocks with a 2-bit int8 kernel in ONNX Runtime; others fall back to dequantising W whole."""

_LARGEST_ON_CPU: Mapping[Container, int] = {2: TWO_BIT_BLOCKS[-1], 4: GROUPS[-1], 8: GROUPS[-1]}
_LARGEST_ON_CUDA: Mapping[Container, int] = {2: 64, 4: 128, 8: GROUPS[-1]}
"""The largest block that a node of so many bits is given.

On CUDA the 2-bit kernels for tensor cores want 64, and a 4-bit product of a single row ends in an
error above 128; those for few rows of 2 and 8 bits want whole blocks. All this is by the sources of
ONNX Runtime 1.31, not by measurement.
"""

_ATTRIBUTES = ("N", "K", "block_size", "accuracy_level")
PORTABLE_OPSET = 21
CUDA_OPSET = 15
"""The first with CastLike, by which a gather serves scales of any type."""


class BlockQuantized(Structure):
    """A structure of integer codes with one float32 scale for each row and group of columns."""

    if TYPE_CHECKING:

        @property
        def group(self) -> int:
            """Columns that share a scale: 16 to 256, a power of two."""

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The MatMulNBits nodes of the packed forms, whose outputs are added."""

    def with_activations(self, activations: Activations) -> Self:
        """The same codes with another value of `activations`."""
        return dataclasses.replace(self, activations=activations)  # type: ignore[type-var]

    @property
    def block(self) -> int:
        """Columns of a block of the engine on a CPU: it has one scale of W and one of x."""
        return min(self.group, *(_LARGEST_ON_CPU[term.bits] for term in self.terms))

    def block_in(self, form: Form, in_features: int) -> int:
        """Columns of a block in model.onnx: the group, or a part of it that has a fast kernel."""
        if form != "cuda":
            return self.block
        largest = min(self.group, *(_LARGEST_ON_CUDA[term.bits] for term in self.terms))
        blocks = (block for block in reversed(GROUPS) if block <= largest)
        return next((block for block in blocks if in_features % block == 0), largest)

    def reference(self, factors: Factors, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """`x Ŵᵀ` in the dtype of x; with `activations=int8` of the rounded x, in float64."""
        if self.activations != "int8":
            return super().reference(factors, x)
        rounded = round_activations(x, self.block)
        return (rounded @ self.dense(factors).T).astype(x.dtype)

    def attributes(self, out_features: int, in_features: int, form: Form) -> dict[str, int]:
        """Those of MatMulNBits, `bits` only for a single node; the block in the portable form.

        Accuracy level 4 is the int8 kernel. It must be given: the level decides the numbers. On
        CUDA there is no such kernel, and the level is not read.
        """
        if form == "portable":
            return {"block_size": self.block}
        own = {"bits": self.terms[0].bits} if len(self.terms) == 1 else {}
        return {
            "N": out_features,
            "K": in_features,
            **own,
            "block_size": self.block_in(form, in_features),
            "accuracy_level": 4 if self.activations == "int8" and form == "fast" else 0,
        }

    def bits(self, out_features: int, in_features: int) -> int:
        """Codes of whole blocks in their containers, and the float32 scales."""
        blocks = group_count(in_features, self.block)
        codes = sum(term.bits for term in self.terms) * self.block
        scales = 32 * (1 if self.terms[0].factor is not None else len(self.terms))
        return out_features * blocks * (codes + scales)

    def _check_group(self) -> None:
        if self.group not in GROUPS:
            raise SchemeError(f"group is one of {', '.join(map(str, GROUPS))}, not {self.group}")


def round_activations(x: NDArray[np.floating], block: int) -> Matrix:
    """`s · rint(x / s)` with `s = max|x| / 127` for each row and block of columns.

    This is what ONNX Runtime's kernels do at accuracy level 4: the scale and the products with
    `127 / max|x|` are float32, ties go to even, and the last block may be partial.

    Args:
        x: `[..., n]`; taken as float32.
        block: columns that share a scale.

    Returns:
        float64 `[..., n]`; every value is an integer times its float32 scale, exactly.
    """
    columns = x.shape[-1]
    filled = np.pad(x.astype(np.float32), [(0, 0)] * (x.ndim - 1) + [(0, -columns % block)])
    blocks = filled.reshape(*x.shape[:-1], group_count(columns, block), block)
    largest = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    scale = (largest / np.float32(127)).astype(np.float64)
    with np.errstate(over="ignore"):
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    inverse[np.isinf(inverse)] = 0  # so small that nothing is left of x in float32
    rounded: Matrix = np.rint(blocks * inverse) * scale
    return rounded.reshape(filled.shape)[..., :columns]


def group_count(in_features: int, group: int) -> int:
    """`ceil(in_features / group)`."""
    return -(-in_features // group)


def block_scales(
    scales: NDArray[np.generic], group: int, block: int, in_features: int
) -> NDArray[np.float32]:
    """Scales of groups `[..., groups]`, repeated for each of their blocks: `[..., blocks]`."""
    repeated = np.repeat(scales.astype(np.float32), group // block, axis=-1)
    return np.ascontiguousarray(repeated[..., : group_count(in_features, block)])


def group_scales(
    scales: ir.TensorProtocol, codes: ir.TensorProtocol, container: Container, group: int
) -> NDArray[np.generic]:
    """The inverse of `block_scales`, for a node whose packed codes tell its block."""
    block = codes.shape.numpy()[-1] * 8 // container
    return np.ascontiguousarray(scales.numpy()[:, :: group // block])


def scaled(codes: NDArray[np.generic], scales: NDArray[np.generic], group: int) -> Matrix:
    """Codes `[..., in_features]` times the scales `[..., groups]` of their groups, in float64."""
    weight: Matrix = codes.astype(np.float64)
    weight *= np.repeat(scales.astype(np.float64), group, axis=-1)[..., : weight.shape[-1]]
    return weight


def random_codes(random: np.random.Generator, low: int, high: int, *shape: int) -> NDArray[np.int8]:
    """Codes from `low` to `high`, all as likely."""
    return random.integers(low, high, shape, np.int8, endpoint=True)


def random_scales(random: np.random.Generator, high: int, *shape: int) -> NDArray[np.float32]:
    """Positive scales by which codes up to `high` become weights below one."""
    return (random.random(shape, np.float32) + 1) / np.float32(2 * high)


def largest_group(in_features: int) -> int:
    """The largest of 128, 64 and 32 that divides in_features and needs no filling, or 64."""
    return next((group for group in (128, 64, 32) if in_features % group == 0), 64)


def pack_codes(codes: NDArray[np.int8], container: Container, block: int) -> ir.TensorProtocol:
    """B of MatMulNBits: `[m, blocks, block · bits / 8]` of `code + 2^(bits-1)`, low bits first."""
    import onnx_ir as ir

    rows, columns = codes.shape
    filled = np.pad(codes.astype(np.int16), [(0, 0), (0, -columns % block)])
    fields = (filled + 2 ** (container - 1)).astype(np.uint8).reshape(rows, -1, block)
    return ir.tensor(pack_fields(fields, container))


def unpack_codes(
    tensor: ir.TensorProtocol, container: Container, in_features: int
) -> NDArray[np.int8]:
    """The inverse of `pack_codes`: `[m, in_features]`."""
    packed = tensor.numpy()
    fields = unpack_fields(packed.reshape(packed.shape[0], -1), container)
    codes: NDArray[np.int16] = fields[:, :in_features].astype(np.int16) - 2 ** (container - 1)
    return codes.astype(np.int8)


def pack_portable(codes: NDArray[np.int8], bits: Literal[4, 8]) -> ir.TensorProtocol:
    """The input of a blocked DequantizeLinear: INT4 or INT8 `[in_features, out_features]`.

    ONNX Runtime fuses only this orientation, with blocks along axis 0, into its packed kernel.
    """
    import onnx_ir as ir

    columns = np.ascontiguousarray(codes.T)
    if bits == 8:
        return ir.tensor(columns)
    flat = columns.reshape(-1)
    nibbles = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & np.uint8(15)
    return ir.PackedTensor(pack_fields(nibbles, 4), ir.DataType.INT4, shape=columns.shape)


def is_portable(codes: ir.TensorProtocol) -> bool:
    """Whether codes were packed for DequantizeLinear: those of MatMulNBits are bytes, UINT8."""
    return bool(codes.dtype.is_signed())


def unpack_portable(codes: ir.TensorProtocol) -> NDArray[np.int8]:
    """The inverse of `pack_portable`: `[out_features, in_features]`."""
    return np.ascontiguousarray(codes.numpy().astype(np.int8).T)


def packed_function(op_type: str, terms: Sequence[Term], opset: int) -> ir.Function:
    """`y = Σ_k MatMulNBits(x, codes_k, factor_k · scales)`.

    The inputs are `codes`, or `codes_0`, `codes_1`... for several terms, then `scales`, or
    `scales_0`... where terms have their own. Terms are joined by `Sum`: ONNX Runtime turns an
    `Add` of two products into a Gemm, which is slower.
    """
    single, common = len(terms) == 1, terms[0].factor is not None
    attributes = [*_ATTRIBUTES, "bits"] if single else _ATTRIBUTES
    given = ", ".join(f"{name}: int = @{name}" for name in attributes)
    names = [""] if single else [f"_{k}" for k in range(len(terms))]
    body = []
    for name, term in zip(names, terms, strict=True):
        scales = "scales" if common else f"scales{name}"
        if term.factor not in (None, 1):
            body.append(f"factor{name} = Constant <value: tensor = float {{{term.factor}}}> ()")
            body.append(f"product{name} = Mul(scales, factor{name})")
            scales = f"product{name}"
        bits = "" if single else f", bits: int = {term.bits}"
        node = f"com.microsoft.MatMulNBits <{given}{bits}> (x, codes{name}, {scales})"
        body.append(f"y{name} = {node}")
    inputs = [f"codes{name}" for name in names]
    inputs += ["scales"] if common else [f"scales{name}" for name in names]
    return _function(op_type, attributes, inputs, names, body, opset, contrib=True)


def portable_function(op_type: str, count: int, opset: int) -> ir.Function:
    """`y = Σ_k MatMul(x, DequantizeLinear(codes_k, scales_k))`, of standard operators.

    Raises:
        LoweringError: below opset 21, which has no blocked DequantizeLinear.
    """
    if opset < PORTABLE_OPSET:
        raise LoweringError(
            f"{op_type}: the portable form needs opset {PORTABLE_OPSET} and the model has "
            f"{opset}; raise its opset or take the fast form"
        )
    names = [""] if count == 1 else [f"_{k}" for k in range(count)]
    given = "axis: int = 0, block_size: int = @block_size"
    body = []
    for name in names:
        body.append(f"weight{name} = DequantizeLinear <{given}> (codes{name}, scales{name})")
        body.append(f"y{name} = MatMul(x, weight{name})")
    inputs = [f"{kind}{name}" for kind in ("codes", "scales") for name in names]
    return _function(op_type, ["block_size"], inputs, names, body, opset, contrib=False)


def _function(
    op_type: str,
    attributes: Sequence[str],
    inputs: Sequence[str],
    names: Sequence[str],
    body: list[str],
    opset: int,
    *,
    contrib: bool,
) -> ir.Function:
    if len(names) > 1:
        body = [*body, f"y = Sum({', '.join(f'y{name}' for name in names)})"]
    header = f"{op_type} <{', '.join(attributes)}> (x, {', '.join(inputs)}) => (y)"
    return parse_function("\n".join([f"{header} {{", *body, "}"]), opset, contrib=contrib)
