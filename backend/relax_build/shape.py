"""Operators that give entries another place: Reshape, Transpose, Concat, Expand, Tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from .builder import Builder
from .dimensions import extent, is_number, size
from .node import Lowering, Node
from .values import Dim, Value, known


def _shape(builder: Builder, node: Node) -> Value:
    rank = node[0].rank
    start = node.attribute("start", 0)
    end = node.attribute("end", rank)
    return known(_objects(node[0].shape[slice(start, end)]), "int64")


def _size(builder: Builder, node: Node) -> Value:
    return known(_objects([builder.simplify(size(node[0].shape))])[0], "int64")


def _objects(dims: Sequence[Dim]) -> Any:
    array = np.empty(len(dims), dtype=object)
    array[:] = dims
    return array


def _identity(builder: Builder, node: Node) -> Value:
    return node[0]


def _dropout(builder: Builder, node: Node) -> list[Value]:
    training = node.get(2)
    if training is not None and not (training.static and not bool(training.host)):
        raise node.refusal("training mode is not covered")
    value = node[0]
    if not node.used(1):
        return [value]
    kept = builder.elementwise("kept", lambda x: tirx.EQ(x, x), value)
    return [value, kept]


def _reshape(builder: Builder, node: Node) -> Value:
    value = node[0]
    wanted = node.ints(1, "shape")
    assert wanted is not None
    shape: list[Dim] = [
        value.shape[axis] if is_number(dim, 0) and not node.attribute("allowzero", 0) else dim
        for axis, dim in enumerate(wanted)
    ]
    open_axes = [axis for axis, dim in enumerate(shape) if is_number(dim, -1)]
    if len(open_axes) > 1:
        raise node.refusal("more than one dimension of the shape is -1")
    if open_axes:
        others = [dim for dim in shape if not is_number(dim, -1)]
        shape[open_axes[0]] = _quotient(builder, list(value.shape), others)
    return builder.reshape(value, shape)


def _quotient(builder: Builder, numerator: list[Dim], denominator: list[Dim]) -> Dim:
    """The product of some dimensions over that of others, equal factors cancelled."""
    rest = []
    for dim in denominator:
        match = next((other for other in numerator if builder.same(dim, other)), None)
        if match is None:
            rest.append(dim)
        else:
            numerator = _without(numerator, match)
    above, below = size(numerator), size(rest)
    if isinstance(below, int) and isinstance(above, int):
        return above // below if below else 0
    return builder.simplify(tirx.floordiv(above, below))


def _without(dims: list[Dim], dim: Dim) -> list[Dim]:
    position = next(index for index, other in enumerate(dims) if other is dim)
    return dims[:position] + dims[position + 1 :]


def _flatten(builder: Builder, node: Node) -> Value:
    value = node[0]
    axis = node.attribute("axis", 1)
    axis = axis + value.rank if axis < 0 else axis
    parts = value.shape[:axis], value.shape[axis:]
    return builder.reshape(value, [builder.simplify(size(part)) for part in parts])


def _squeeze(builder: Builder, node: Node) -> Value:
    value = node[0]
    axes = node.ints(1, "axes")
    if axes is None:
        if not all(isinstance(dim, int) for dim in value.shape):
            raise node.refusal("without axes the result depends on the symbolic dimensions")
        axes = [axis for axis, dim in enumerate(value.shape) if dim == 1]
    dropped = {node.axis(axis, value.rank) for axis in axes}
    return builder.reshape(
        value, [dim for axis, dim in enumerate(value.shape) if axis not in dropped]
    )


def _unsqueeze(builder: Builder, node: Node) -> Value:
    value = node[0]
    axes = node.ints(1, "axes") or []
    rank = value.rank + len(axes)
    added = {node.axis(axis, rank) for axis in axes}
    rest = iter(value.shape)
    return builder.reshape(value, [1 if axis in added else next(rest) for axis in range(rank)])


def _transpose(builder: Builder, node: Node) -> Value:
    value = node[0]
    return builder.transpose(value, node.attribute("perm") or list(range(value.rank))[::-1])


def _concat(builder: Builder, node: Node) -> Value:
    values = [value for value in node.inputs if value is not None]
    axis = node.axis(node.attribute("axis"), values[0].rank)
    return concatenate(builder, values, axis)


def concatenate(builder: Builder, values: Sequence[Value], axis: int) -> Value:
    """Values joined along an axis."""
    values = [value for value in values if not is_number(value.shape[axis], 0)] or list(values[:1])
    if len(values) == 1:
        return values[0]

    def compute(*tensors: Any) -> Any:
        return topi.concatenate(tensors, axis)

    return builder.te("concatenate", compute, *values)


def _expand(builder: Builder, node: Node) -> Value:
    wanted = node.ints(1, "shape")
    assert wanted is not None
    return expand(builder, node[0], builder.broadcast(node[0].shape, wanted))


def expand(builder: Builder, value: Value, shape: Sequence[Dim]) -> Value:
    """The value broadcast to a shape."""
    if len(shape) == value.rank and all(map(builder.same, shape, value.shape)):
        return value
    return builder.elementwise("expand", lambda x: x, value, shape=shape)


def _tile(builder: Builder, node: Node) -> Value:
    value = node[0]
    repeats = node.ints(1, "repeats")
    assert repeats is not None
    if all(is_number(repeat, 1) for repeat in repeats):
        return value

    def compute(x: Any, shape: list[Any]) -> Any:
        def entry(*index: Any) -> Any:
            return x(*[tirx.floormod(i, dim) for i, dim in zip(index, x.shape, strict=True)])

        return te.compute([extent(dim) for dim in shape], entry, name="tile")

    shape = [
        builder.simplify(dim * repeat) for dim, repeat in zip(value.shape, repeats, strict=True)
    ]
    return builder.te("tile", compute, value, shape)


def _depth_to_space(builder: Builder, node: Node) -> Value:
    value, block = node[0], node.attribute("blocksize")
    batch, channels, height, width = value.shape
    inner = channels // (block * block)
    if node.attribute("mode", "DCR") == "DCR":
        split, order = [batch, block, block, inner, height, width], [0, 3, 4, 1, 5, 2]
    else:
        split, order = [batch, inner, block, block, height, width], [0, 1, 4, 2, 5, 3]
    moved = builder.transpose(builder.reshape(value, split), order)
    return builder.reshape(moved, [batch, inner, height * block, width * block])


LOWERINGS: dict[str, Lowering] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Identity": _identity,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
