"""Operators that take a part of a tensor or add to its ends: Slice, Split and Pad."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import te, tirx

from .builder import Builder
from .dimensions import extent, is_number
from .node import Lowering, Node
from .values import Dim, Value, like

_FOREVER = 1 << 31
"""Ends of a Slice from here on mean "to the end"."""


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
        is_number(first, 0) and step == 1 and builder.same(length, value.shape[axis])
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
    if all(is_number(amount, 0) for amount in [*before, *after]):
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
                if not (is_number(low, 0) and is_number(high, 0))
            ]
            return tirx.if_then_else(functools.reduce(tirx.all, inside), x(*source), like(fill, x))

        return te.compute([extent(dim) for dim in shape], entry, name="pad")

    result = builder.te("pad", compute, value, shape, list(before))
    if mode != "constant" or fill != 0:
        return result
    return replace(result, padded=(value, tuple(before), tuple(after)))


def _inside(mode: str, index: Any, dim: Any) -> Any:
    if mode == "edge":
        return te.max(extent(0), te.min(index, dim - 1))
    if mode == "wrap":
        return tirx.floormod(index, dim)
    index = te.abs(index)
    return tirx.Select(index >= dim, 2 * dim - 2 - index, index)


LOWERINGS: dict[str, Lowering] = {"Pad": _pad, "Slice": _slice, "Split": _split}
