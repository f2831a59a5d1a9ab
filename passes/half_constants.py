"""float32 constants -> the same in a half type, under the same names, checked against its range."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constants import constant_tensor, read_tensor
from .errors import PrecisionError

_LIMITS = frozenset(
    ("Clip", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Where")
)
"""Readers to which the end of the range is as good as what lies beyond it."""

_SUMMANDS = frozenset(("Add", "Attention", "Sub"))
"""Readers to which a mask is a summand, far below zero."""


def finite_range(dtype: ir.DataType) -> tuple[float, float]:
    """The lowest and the highest finite number of a type."""
    info = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    return float(info.min), float(info.max)


def is_matrix(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is longer than one along two axes at least."""
    return sum(length != 1 for length in tensor.shape.numpy()) >= 2


def fits(tensor: ir.TensorProtocol, dtype: ir.DataType) -> bool:
    """Whether every finite entry stays finite in `dtype`."""
    return not _beyond(read_tensor(tensor), dtype).size


class HalfConstants:
    """The converted constants of one graph.

    A constant keeps its name in half; where something reads it in float32 too, that one gets
    another name. Weights are converted whenever they are read, so that they are not held twice.
    """

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph, self.dtype = graph, dtype
        self._made: dict[ir.Value, ir.Value] = {}
        self._limits: dict[float, ir.Value] = {}
        self._names = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
        self._names |= {str(value.name) for node in graph.all_nodes() for value in node.outputs}

    def of(self, value: ir.Value, reader: ir.Node | None) -> ir.Value:
        """The constant in half, for a node to read.

        Raises:
            PrecisionError: entries that the half type cannot hold, where the reader is none that
                takes the end of its range instead.
        """
        tensor = constant_tensor(value)
        if tensor is None:
            raise ValueError(f"{value.name} is no constant")
        if tensor.dtype == self.dtype:
            return value
        self._check(value, tensor, reader)
        if value not in self._made:
            self._made[value] = _initializer(str(value.name), _half(tensor, self.dtype))
            self._made[value].metadata_props.update(value.metadata_props)
        return self._made[value]

    def limit(self, number: float) -> ir.Value:
        """A float32 scalar of the graph."""
        if number not in self._limits:
            name = self.free_name("lowest" if number < 0 else "highest")
            tensor = ir.tensor(np.array(number, np.float32), name=name)
            value = self._limits[number] = _initializer(name, tensor)
            self.graph.register_initializer(value)
        return self._limits[number]

    def free_name(self, wanted: str) -> str:
        """The name, or one that starts with it, which is then taken."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def finish(self) -> None:
        """Puts the converted constants into the graph, under the names of the float32 ones."""
        for value, half in self._made.items():
            name = str(value.name)
            wide = bool(value.uses()) or value.is_graph_output()
            if wide:
                value.name = self.free_name(f"{name}/float32")
            elif value.is_initializer():
                del self.graph.initializers[name]
            else:
                producer = value.producer()
                assert producer is not None
                self.graph.remove(producer, safe=True)
            half.name = name
            self.graph.register_initializer(half)

    def _check(self, value: ir.Value, tensor: ir.TensorProtocol, reader: ir.Node | None) -> None:
        beyond = _beyond(read_tensor(tensor), self.dtype)
        operator = "" if reader is None or reader.domain else reader.op_type
        if not beyond.size or operator in _LIMITS:
            return
        if operator in _SUMMANDS and (beyond < 0).all():
            return
        dtype = self.dtype.numpy().name
        where = "" if reader is None else f", which node {reader.name!r} ({reader.op_type}) reads"
        remedy = "choose dtype bfloat16" if dtype == "float16" else "leave dtype out"
        raise PrecisionError(
            f"{value.name}{where}: holds {beyond.flat[0]:.6g}, beyond the range of {dtype}; "
            f"{remedy}"
        )


def _initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
    )


def _beyond(array: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.float32]:
    """The finite entries that would be infinite in `dtype`."""
    low, high = finite_range(dtype)
    if not array.size or (array.min() >= low and array.max() <= high):
        return array.reshape(-1)[:0]
    with np.errstate(over="ignore"):
        lost = np.isfinite(array) & ~np.isfinite(array.astype(dtype.numpy()).astype(np.float32))
    return array[lost]


def _half(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    low, high = finite_range(dtype)

    def read() -> ir.TensorProtocol:
        array = read_tensor(tensor)
        finite = np.where(np.isfinite(array), np.clip(array, low, high), array)
        return ir.Tensor(finite.astype(dtype.numpy()), dtype=dtype, name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(read, dtype=dtype, shape=shape, name=tensor.name)
