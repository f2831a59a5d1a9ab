"""Finds attention and norms that an export has spelled out, so that one kernel computes each.

Casts between floating types are looked through: the kernels compute in float32 anyway. The
spelled-out nodes are lowered too, and dropped where nothing else uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Constant = Callable[[ir.Value], NDArray[Any] | None]
"""The content of a value that is known while building."""


@dataclass(frozen=True, eq=False)
class RootMeanSquare:
    """`x / √(mean(x²) + ε)` over an axis."""

    x: ir.Value
    axis: int
    epsilon: float


@dataclass(frozen=True, eq=False)
class ScaledAttention:
    """`softmax(scale · query keyᵀ + mask) value`, all `[batch, heads, length, size]`.

    Attributes:
        query: has all the heads.
        key: as many, or fewer if `repeats` says so.
        value: likewise.
        scale: of the products.
        mask: what is added, if anything.
        repeats: the shapes that keys and values are expanded to before their heads are joined,
            `[batch, heads, repeats of a head, length, size]`.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    mask: ir.Value | None
    repeats: tuple[ir.Value, ...] = ()


def root_mean_square(node: ir.Node, constant: Constant) -> RootMeanSquare | None:
    """The norm whose last node is a product of x with the inverse root."""
    if node.op_type != "Mul":
        return None
    for x, factor in _either(node):
        inverse = _made_by(factor, "Reciprocal")
        root = _made_by(_input(inverse, 0), "Sqrt")
        shifted = _made_by(_input(root, 0), "Add")
        if shifted is None:
            continue
        for mean, epsilon in _either(shifted):
            number = _scalar(epsilon, constant)
            reduced = _made_by(mean, "ReduceMean")
            if number is None or reduced is None:
                continue
            axis = _kept_axis(reduced, constant)
            square = _square_of(_input(reduced, 0), constant)
            if axis is not None and square is not None and _uncast(square) is _uncast(x):
                return RootMeanSquare(x, axis, number)
    return None


def scaled_attention(node: ir.Node, constant: Constant) -> ScaledAttention | None:
    """The attention whose last node is the product with the values."""
    if node.op_type != "MatMul":
        return None
    softmax = _made_by(_input(node, 0), "Softmax")
    value = _input(node, 1)
    if softmax is None or value is None or not _last_axis(softmax, 4):
        return None
    scores, mask = _input(softmax, 0), None
    product = _made_by(scores, "MatMul")
    if product is None:
        masked = _made_by(scores, "Add")
        if masked is None:
            return None
        for one, other in _either(masked):
            product = _made_by(one, "MatMul")
            if product is not None:
                mask = other
                break
    if product is None:
        return None
    query, first = _unscaled(_input(product, 0), constant)
    transposed, second = _unscaled(_input(product, 1), constant)
    key = _untransposed(transposed)
    if query is None or key is None:
        return None
    key, key_repeat = _unrepeated(key, constant)
    value, value_repeat = _unrepeated(value, constant)
    if (key_repeat is None) != (value_repeat is None):
        return None
    repeats = tuple(shape for shape in (key_repeat, value_repeat) if shape is not None)
    return ScaledAttention(query, key, value, first * second, mask, repeats)


def _input(node: ir.Node | None, index: int) -> ir.Value | None:
    return None if node is None or index >= len(node.inputs) else node.inputs[index]


def _uncast(value: ir.Value) -> ir.Value:
    """The value before it was cast from one floating type to another."""
    while True:
        node = value.producer()
        source = None if node is None or node.op_type != "Cast" else node.inputs[0]
        if source is None or source.dtype not in _FLOATS or value.dtype not in _FLOATS:
            return value
        value = source


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else _uncast(value).producer()
    return node if node is not None and (node.domain, node.op_type) == ("", operator) else None


def _either(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    one, other = node.inputs[0], node.inputs[1]
    if one is not None and other is not None:
        yield one, other
        yield other, one


def _scalar(value: ir.Value | None, constant: Constant) -> float | None:
    array = None if value is None else constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _square_of(value: ir.Value | None, constant: Constant) -> ir.Value | None:
    power = _made_by(value, "Pow")
    if power is not None:
        return _input(power, 0) if _scalar(_input(power, 1), constant) == 2.0 else None
    product = _made_by(value, "Mul")
    one, other = _input(product, 0), _input(product, 1)
    if one is not None and other is not None and _uncast(one) is _uncast(other):
        return one
    return None


def _kept_axis(node: ir.Node, constant: Constant) -> int | None:
    """The only axis of a reduction that keeps it with length one."""
    given, second, keeps = (
        node.attributes.get("axes"),
        _input(node, 1),
        node.attributes.get("keepdims"),
    )
    axes: Any = None if second is None else constant(second)
    if given is not None:
        axes = list(given.as_ints())
    if axes is None or np.size(axes) != 1 or (keeps is not None and not keeps.value):
        return None
    return int(np.reshape(axes, -1)[0])


def _last_axis(node: ir.Node, rank: int) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.value in (-1, rank - 1)


def _unscaled(value: ir.Value | None, constant: Constant) -> tuple[ir.Value | None, float]:
    """The value before it was multiplied by a number, and the number."""
    product = _made_by(value, "Mul")
    if product is not None:
        for x, factor in _either(product):
            number = _scalar(factor, constant)
            if number is not None:
                return x, number
    return value, 1.0


def _permutation(node: ir.Node | None) -> list[int] | None:
    given = None if node is None else node.attributes.get("perm")
    return None if given is None else list(given.as_ints())


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    """K from Kᵀ: transposed at once, or with its batch and heads joined meanwhile."""
    node = _made_by(value, "Transpose")
    if node is not None:
        return _input(node, 0) if _permutation(node) == [0, 1, 3, 2] else None
    split = _made_by(value, "Reshape")
    turned = _made_by(_input(split, 0), "Transpose")
    joined = _made_by(_input(turned, 0), "Reshape")
    if joined is None or _permutation(turned) != [0, 2, 1]:
        return None
    return _input(joined, 0)


def _unrepeated(value: ir.Value, constant: Constant) -> tuple[ir.Value, ir.Value | None]:
    """The heads before each was repeated, and the shape that they were expanded to."""
    joined = _made_by(value, "Reshape")
    expanded = _made_by(_input(joined, 0), "Expand")
    inserted = _made_by(_input(expanded, 0), "Unsqueeze")
    source, given = _input(inserted, 0), _input(inserted, 1)
    axes = None if given is None else constant(given)
    if source is None or axes is None or [int(axis) for axis in axes.reshape(-1)] != [2]:
        return value, None
    return source, _input(expanded, 1)
