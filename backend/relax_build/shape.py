"""Operators that move entries: Reshape, Transpose, Concat, Split, Slice, Expand, Tile, Pad."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from .builder import Builder, extent, size
from .node import Lowering, Node
from .values import Dim, Value, known, like

_FOREVER = 1 << 31
"""Ends of a Slice from here on mean "to the end"."""


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
        value.shape[axis] if _is(dim, 0) and not node.attribute("allowzero", 0) else dim
        for axis, dim in enumerate(wanted)
    ]
    open_axes = [axis for axis, dim in enumerate(shape) if _is(dim, -1)]
    if len(open_axes) > 1:
        raise node.refusal("more than one dimension of the shape is -1")
    if open_axes:
        others = [dim for dim in shape if not _is(dim, -1)]
        shape[open_axes[0]] = _quotient(builder, list(value.shape), others)
    return builder.reshape(value, shape)


def _is(dim: Dim, number: int) -> bool:
    return isinstance(dim, int) and dim == number


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
    values = [value for value in values if not _is(value.shape[axis], 0)] or list(values[:1])
    if len(values) == 1:
        return values[0]

    def compute(*tensors: Any) -> Any:
        return topi.concatenate(tensors, axis)

    return builder.te("concatenate", compute, *values)


def _split(builder: Builder, node: Node) -> list[Value]:
    value = node[0]
    axis = node.axis(node.attribute("axis", 0), value.rank)
    sizes = node.ints(1, "split") or _even(node, value.shape[axis], len(node.node.outputs))
    results, start = [], 0
    for length in sizes:
        results.append(cut(builder, value, {axis: (start, length, 1)}))
        start = start + length
    return results


def _even(node: Node, length: Dim, count: int) -> list[Dim]:
    if not isinstance(length, int):
        raise node.refusal("a symbolic dimension is split into equal parts")
    part = -(-length // count)
    return [min(part, length - part * index) for index in range(count)]


def _slice(builder: Builder, node: Node) -> Value:
    value = node[0]
    starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
    assert starts is not None
    assert ends is not None
    axes = node.ints(3, "axes") or list(range(len(starts)))
    steps = node.ints(4, "steps") or [1] * len(starts)
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = node.axis(axis, value.rank)
        dim = value.shape[axis]
        if not isinstance(step, int) or step == 0:
            raise node.refusal(f"step {step} of a slice is not covered")
        if step > 0:
            first = _position(builder, start, dim)
            last = _position(builder, end, dim)
            length = _length(builder, first, last, step)
        else:
            first, length = _backwards(node, start, end, step, dim)
        cuts[axis] = (first, length, step)
    return cut(builder, value, cuts)


def _position(builder: Builder, position: Dim, dim: Dim) -> Dim:
    """A start or end of a forward slice as an index between 0 and the dimension.

    What cannot be decided while building is assumed to lie inside a dimension of fixed size (a
    table of positions cut to the sequence length), and that is recorded as a bound.
    """
    if isinstance(position, int) and position >= _FOREVER:
        return dim
    if isinstance(position, int) and position <= -_FOREVER:
        return 0
    if isinstance(position, int) and isinstance(dim, int):
        return max(0, min(dim, position + dim if position < 0 else position))
    if isinstance(position, int) and position < 0:
        builder.bound(dim, at_least=-position)
        return builder.simplify(dim + position)
    if builder.same(position, dim) or builder.proves(position >= dim):
        return dim
    if builder.proves(position < 0):
        position = builder.simplify(position + dim)
    if builder.proves(position <= dim):
        return position
    if isinstance(dim, int):
        builder.bound(position, at_most=dim)
        return position
    return builder.simplify(te.min(extent(position), extent(dim)))


def _length(builder: Builder, first: Dim, last: Dim, step: int) -> Dim:
    if isinstance(first, int) and isinstance(last, int):
        return max(0, -(-(last - first) // step))
    span = builder.simplify(last - first)
    if not builder.proves(span >= 0):
        span = te.max(extent(span), extent(0))
    return builder.simplify(span if step == 1 else tirx.floordiv(span + (step - 1), step))


def _backwards(node: Node, start: Dim, end: Dim, step: int, dim: Dim) -> tuple[Dim, Dim]:
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        picked = range(dim)[slice(start, None if end < -dim else end, step)]
        return (picked.start, len(picked))
    whole = isinstance(end, int) and end <= -_FOREVER
    from_last = isinstance(start, int) and (start == -1 or start >= _FOREVER)
    if step == -1 and whole and from_last:
        return dim - 1, dim
    raise node.refusal("a backward slice of a symbolic dimension is covered only as a whole")


def cut(builder: Builder, value: Value, cuts: dict[int, tuple[Dim, Dim, int]]) -> Value:
    """Entries of some axes: first, length and step of each."""
    whole = all(
        _is(first, 0) and step == 1 and builder.same(length, value.shape[axis])
        for axis, (first, length, step) in cuts.items()
    )
    if whole:
        return value
    axes, ranges = list(cuts), list(cuts.values())
    steps = [step for *_, step in ranges]

    def compute(x: Any, firsts: list[Any], lengths: list[Any]) -> Any:
        shape = list(x.shape)
        for axis, length in zip(axes, lengths, strict=True):
            shape[axis] = extent(length)

        def entry(*index: Any) -> Any:
            source = list(index)
            for axis, first, step in zip(axes, firsts, steps, strict=True):
                source[axis] = first + index[axis] * step
            return x(*source)

        return te.compute(shape, entry, name="slice")

    return builder.te("slice", compute, value, [r[0] for r in ranges], [r[1] for r in ranges])


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
    if all(_is(repeat, 1) for repeat in repeats):
        return value

    def compute(x: Any, shape: list[Any]) -> Any:
        def entry(*index: Any) -> Any:
            return x(*[tirx.floormod(i, dim) for i, dim in zip(index, x.shape, strict=True)])

        return te.compute([extent(dim) for dim in shape], entry, name="tile")

    shape = [
        builder.simplify(dim * repeat) for dim, repeat in zip(value.shape, repeats, strict=True)
    ]
    return builder.te("tile", compute, value, shape)


def _pad(builder: Builder, node: Node) -> Value:
    value = node[0]
    pads = node.ints(1, "pads")
    assert pads is not None
    axes = [node.axis(int(axis), value.rank) for axis in node.ints(3, "axes") or range(value.rank)]
    mode = node.attribute("mode", "constant")
    fill = node.get(2)
    if fill is not None and not fill.static:
        raise node.refusal("the fill value is computed at run time")
    number = float(fill.host.item()) if fill is not None and fill.host is not None else 0.0
    before = [pads[axes.index(axis)] if axis in axes else 0 for axis in range(value.rank)]
    after = [
        pads[axes.index(axis) + len(axes)] if axis in axes else 0 for axis in range(value.rank)
    ]
    return pad(builder, node, value, before, after, mode, number)


def pad(
    builder: Builder,
    node: Node,
    value: Value,
    before: Sequence[Dim],
    after: Sequence[Dim],
    mode: str = "constant",
    fill: float = 0.0,
) -> Value:
    """The value with entries added (or, where negative, cut off) at the ends of its axes."""
    if all(_is(amount, 0) for amount in [*before, *after]):
        return value
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise node.refusal(f"mode {mode!r} is not covered")
    shape = [
        builder.simplify(dim + low + high)
        for dim, low, high in zip(value.shape, before, after, strict=True)
    ]

    def compute(x: Any, shape: list[Any], before: list[Any]) -> Any:
        def entry(*index: Any) -> Any:
            source = [i - low for i, low in zip(index, before, strict=True)]
            if mode != "constant":
                return x(*[_inside(mode, i, dim) for i, dim in zip(source, x.shape, strict=True)])
            inside = [
                tirx.all(i >= 0, i < dim)
                for i, dim, low, high in zip(source, x.shape, before, after, strict=True)
                if not (_is(low, 0) and _is(high, 0))
            ]
            return tirx.if_then_else(functools.reduce(tirx.all, inside), x(*source), like(fill, x))

        return te.compute([extent(dim) for dim in shape], entry, name="pad")

    return builder.te("pad", compute, value, shape, list(before))


def _inside(mode: str, index: Any, dim: Any) -> Any:
    if mode == "edge":
        return te.max(extent(0), te.min(index, dim - 1))
    if mode == "wrap":
        return tirx.floormod(index, dim)
    index = te.abs(index)
    return tirx.Select(index >= dim, 2 * dim - 2 - index, index)


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
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
