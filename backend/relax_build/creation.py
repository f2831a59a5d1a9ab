"""Operators that make tensors: Constant, ConstantOfShape, Range, Trilu, EyeLike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from .builder import Builder
from .dimensions import extent, size
from .node import Lowering, Node
from .values import SUPPORTED, Dim, Value, known, like

_FOLDED = 4096
"""Up to this many entries what could be computed at run time is made while building."""


def _constant(builder: Builder, node: Node) -> Value:
    name = str(node.node.outputs[0].name)
    for key, dtype in (
        ("value_float", "float32"),
        ("value_floats", "float32"),
        ("value_int", "int64"),
        ("value_ints", "int64"),
    ):
        number = node.attribute(key)
        if number is not None:
            return known(np.asarray(number, dtype), dtype, name)
    tensor = node.attribute("value")
    if tensor is None or tensor.dtype not in SUPPORTED:
        raise node.refusal("only tensors of numbers are covered")
    return known(tensor.numpy(), SUPPORTED[tensor.dtype], name)


def full(builder: Builder, shape: list[Dim], number: Any, dtype: str) -> Value:
    """A tensor of one number."""
    count = size(shape)
    if isinstance(count, int) and count <= _FOLDED:
        sizes = "x".join(map(str, shape))
        return known(np.full(shape, number, dtype), dtype, f"full.{number}.{dtype}.{sizes}")

    def compute(shape: list[Any]) -> Any:
        return te.compute(
            [extent(dim) for dim in shape], lambda *_: tirx.const(number, dtype), name="full"
        )

    return builder.te("full", compute, shape)


def _constant_of_shape(builder: Builder, node: Node) -> Value:
    shape = list(node.known(0, "the shape").reshape(-1).tolist())
    tensor = node.attribute("value")
    if tensor is None:
        return full(builder, shape, 0.0, "float32")
    if tensor.dtype not in SUPPORTED:
        raise node.refusal(f"type {tensor.dtype.name} is not covered")
    return full(builder, shape, tensor.numpy().reshape(-1)[0].item(), SUPPORTED[tensor.dtype])


def _range(builder: Builder, node: Node) -> Value:
    names = ("the start", "the limit", "the step")
    start, limit, step = (
        node.known(index, name).reshape(-1)[0] for index, name in enumerate(names)
    )
    dtype = node[0].dtype
    if all(node[index].static for index in range(3)):
        return known(
            np.arange(start, limit, step, dtype=np.dtype(dtype)),
            dtype,
            str(node.node.outputs[0].name),
        )
    if not isinstance(step, int | np.integer) or step == 0:
        raise node.refusal("a symbolic step is not covered")
    step = int(step)
    first, last = (limit, start) if step < 0 else (start, limit)
    span = builder.simplify(_dim(last) - _dim(first))
    if not builder.proves(span >= 0):
        span = te.max(extent(span), extent(0))
    length = builder.simplify(tirx.floordiv(extent(span) + (abs(step) - 1), abs(step)))

    def compute(length: Any, start: Any) -> Any:
        return te.compute(
            [extent(length)], lambda i: (extent(start) + i * step).astype(dtype), name="range"
        )

    return builder.te("range", compute, length, _dim(start))


def _dim(entry: Any) -> Dim:
    return int(entry) if isinstance(entry, int | np.integer) else entry


def _trilu(builder: Builder, node: Node) -> Value:
    value, upper = node[0], bool(node.attribute("upper", 1))
    diagonal = _dim(node.known(1, "the diagonal").reshape(-1)[0]) if node.get(1) else 0

    def compute(x: Any, diagonal: Any) -> Any:
        def entry(*index: Any) -> Any:
            edge = index[-2] + diagonal
            inside = index[-1] >= edge if upper else index[-1] <= edge
            return tirx.Select(inside, x(*index), like(0, x))

        return te.compute(x.shape, entry, name="trilu")

    return builder.te("trilu", compute, value, diagonal)


def _eye_like(builder: Builder, node: Node) -> Value:
    shape, offset = list(node[0].shape), int(node.attribute("k", 0))
    wanted = node.attribute("dtype")
    dtype = node[0].dtype if wanted is None else SUPPORTED[ir.DataType(wanted)]

    def compute(shape: list[Any]) -> Any:
        return te.compute(
            [extent(dim) for dim in shape],
            lambda i, j: tirx.EQ(j, i + offset).astype(dtype),
            name="eye",
        )

    return builder.te("eye", compute, shape)


LOWERINGS: dict[str, Lowering] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Range": _range,
    "Trilu": _trilu,
}
