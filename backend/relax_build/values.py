"""`Value`: a tensor during the walk, known on the host or computed at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tvm import tirx

from ..kernels.gpu import on_gpu
from ..kernels.mathematics import dtype_of

Dim = Any
"""A dimension: an int, or an int64 TVM expression of symbolic dimensions."""

SUPPORTED = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.INT8: "int8",
    ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
    ir.DataType.UINT16: "uint16",
    ir.DataType.UINT32: "uint32",
    ir.DataType.UINT64: "uint64",
    ir.DataType.BOOL: "bool",
}
"""The ONNX types that the lowering covers, as TVM writes them."""


def covered(dtype: ir.DataType | None) -> bool:
    """Whether values of a type are lowered for `Target.current()`: bfloat16 is for GPUs."""
    return dtype in SUPPORTED and (dtype != ir.DataType.BFLOAT16 or on_gpu())


HALVES = ("float16", "bfloat16")
"""Types of half the width of float32, in which they are computed."""


@dataclass(frozen=True, eq=False)
class Value:
    """One ONNX value.

    Attributes:
        dtype: as TVM and numpy write it: `float32`, `bool`.
        shape: ints, and expressions where symbolic.
        host: the content where it is known while building: a numpy array, of dtype object where
            entries are expressions of symbolic dimensions (always integers then).
        expr: the Relax expression that computes it, where it is not known.
        name: of the initializer or input, for parameters and messages; empty otherwise.
        permuted: the value that this one is a transposition of, and its axes.
        padded: the value that this one is with zeros at the ends of its axes, and how many of them
            lie before and after each.
        widened: the value of half precision that this one holds in float32.
    """

    dtype: str
    shape: tuple[Dim, ...]
    host: NDArray[Any] | None = None
    expr: Any = None
    name: str = ""
    permuted: tuple[Value, tuple[int, ...]] | None = None
    padded: tuple[Value, tuple[Dim, ...], tuple[Dim, ...]] | None = None
    widened: Value | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def symbolic(self) -> bool:
        """Whether the content is known, but in terms of symbolic dimensions."""
        return self.host is not None and self.host.dtype == object

    @property
    def static(self) -> bool:
        """Whether the content is known as plain numbers."""
        return self.host is not None and self.host.dtype != object


def known(array: Any, dtype: str, name: str = "") -> Value:
    """A host value; an object array without expressions becomes a plain one."""
    array = np.asarray(array)
    if array.dtype == object and all(isinstance(entry, int) for entry in array.flat):
        array = array.astype(np.int64)
    if array.dtype != object:
        array = array.astype(dtype, copy=False)
    return Value(dtype, tuple(array.shape), host=array, name=name)


def channels_second(rank: int) -> tuple[int, ...]:
    """The axes of a transposition that moves channels from the last place to the second."""
    return (0, rank - 1, *range(1, rank - 1))


def plain(dim: Dim) -> Dim:
    """An int where the dimension is a constant."""
    return int(dim) if isinstance(dim, tirx.IntImm | int | np.integer) else dim


def like(number: float, expression: Any) -> Any:
    """A constant of the dtype of an expression."""
    return tirx.const(number, dtype_of(expression))
