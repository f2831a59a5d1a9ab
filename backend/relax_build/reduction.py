"""Reductions over axes, Softmax, ArgMax, CumSum and TopK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from ..kernels.gpu import on_gpu
from ..kernels.mathematics import dtype_of, exp
from .builder import OUT_ELEMENTWISE_FUSABLE, Builder
from .dimensions import extent, size
from .node import Lowering, Node
from .values import HALVES, Dim, Value, like

Combine = Callable[..., Any]


def reduce(
    builder: Builder,
    name: str,
    value: Value,
    axes: Sequence[int],
    *,
    before: Callable[[Any], Any] = lambda x: x,
    combine: Combine = te.sum,
    keep: bool = True,
) -> Value:
    """`before` of every entry, combined over axes, in a wider type where it is added up."""
    order = [axis for axis in range(value.rank) if axis not in axes]

    def compute(x: Any) -> Any:
        reduced = {axis: te.reduce_axis((0, x.shape[axis]), f"k{axis}") for axis in axes}
        shape = [
            extent(1) if axis in reduced else x.shape[axis]
            for axis in range(value.rank)
            if keep or axis not in reduced
        ]

        def entry(*index: Any) -> Any:
            kept = index if keep else dict(zip(order, index, strict=True))
            source = [reduced[a] if a in reduced else kept[a] for a in range(value.rank)]
            return before(x(*source))

        over = list(reduced.values())
        if combine is te.sum:
            return _exact_sum(shape, entry, over, value.dtype, name)
        return te.compute(shape, lambda *index: combine(entry(*index), axis=over), name=name)

    return builder.te(name, compute, value)


def _exact_sum(
    shape: Sequence[Any], term: Callable[..., Any], over: Sequence[Any], dtype: str, name: str
) -> Any:
    """Σ term, rounded once where it is of a type with a wider one.

    A running sum in float32 loses a digit over a row of a thousand. GPUs sum in parallel, and many
    have hardly any float64.
    """
    wide = "float32" if dtype in HALVES else "float64" if dtype == "float32" else dtype
    if wide == dtype or (wide == "float64" and on_gpu()):
        return te.compute(shape, lambda *index: te.sum(term(*index), axis=over), name=name)
    total = te.compute(
        shape, lambda *index: te.sum(term(*index).astype(wide), axis=over), name=name
    )
    return te.compute(shape, lambda *index: total(*index).astype(dtype), name="narrowed")


def mean(builder: Builder, value: Value, axes: Sequence[int], *, keep: bool = True) -> Value:
    """The mean over axes."""
    total = reduce(builder, "sum", value, axes, keep=keep)
    count = builder.simplify(size([value.shape[axis] for axis in axes]))
    return divide_by_count(builder, total, count)


def divide_by_count(builder: Builder, total: Value, count: Dim) -> Value:
    """The value over a number of entries, which may be symbolic."""

    def compute(x: Any, count: Any) -> Any:
        number = extent(count).astype(dtype_of(x))
        return te.compute(x.shape, lambda *index: x(*index) / number, name="mean")

    return builder.te("mean", compute, total, count)


def softmax(builder: Builder, value: Value, axis: int, *, allow_empty: bool = False) -> Value:
    """exp(x − max) / Σ exp(x − max) along one axis.

    With `allow_empty` a row of nothing but −inf gives zeros instead of NaN.
    """

    def compute(x: Any) -> Any:
        rest = [dim for index, dim in enumerate(x.shape) if index != axis]

        def at(index: tuple[Any, ...], position: Any) -> Any:
            return x(*index[:axis], position, *index[axis:])

        def others(index: tuple[Any, ...]) -> tuple[Any, ...]:
            return index[:axis] + index[axis + 1 :]

        zero, one = like(0, x), like(1, x)
        k = te.reduce_axis((0, x.shape[axis]), "k")
        peak = te.compute(rest, lambda *i: te.max(at(i, k), axis=k), name="peak")

        def shifted(*index: Any) -> Any:
            top = peak(*others(index))
            if allow_empty:
                top = tirx.Select(top <= te.min_value(dtype_of(x)), zero, top)
            return exp(x(*index) - top)

        powers = te.compute(x.shape, shifted, name="powers")
        j = te.reduce_axis((0, x.shape[axis]), "j")

        def power(*index: Any) -> Any:
            return powers(*index[:axis], j, *index[axis:])

        total = _exact_sum(rest, power, [j], value.dtype, "total")

        def entry(*index: Any) -> Any:
            sum_ = total(*others(index))
            if allow_empty:
                sum_ = tirx.Select(tirx.EQ(sum_, zero), one, sum_)
            return powers(*index) / sum_

        return te.compute(x.shape, entry, name="softmax")

    attributes = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
    return builder.te("softmax", compute, value, attributes=attributes)


def _axes(node: Node) -> list[int] | None:
    """The reduced axes; None where nothing is to be reduced."""
    value = node[0]
    axes = node.ints(1, "axes")
    if not axes:
        return None if node.attribute("noop_with_empty_axes", 0) else list(range(value.rank))
    return sorted({node.axis(int(axis), value.rank) for axis in axes})


def _reduction(
    before: Callable[[Any], Any] = lambda x: x,
    combine: Combine = te.sum,
    after: Callable[[Any], Any] | None = None,
) -> Lowering:
    def lower(builder: Builder, node: Node) -> Value:
        axes, name = _axes(node), node.node.op_type.lower()
        if axes is None:
            result = builder.elementwise(name, before, node[0])
        else:
            keep = bool(node.attribute("keepdims", 1))
            result = reduce(builder, name, node[0], axes, before=before, combine=combine, keep=keep)
        return result if after is None else builder.elementwise(name, after, result)

    return lower


def _mean(builder: Builder, node: Node) -> Value:
    axes = _axes(node)
    if axes is None:
        return node[0]
    return mean(builder, node[0], axes, keep=bool(node.attribute("keepdims", 1)))


_product = te.comm_reducer(lambda x, y: x * y, lambda dtype: tirx.const(1, dtype), name="product")


def _log_sum_exp(builder: Builder, node: Node) -> Value:
    axes = _axes(node)
    if axes is None:
        return node[0]
    peak = reduce(builder, "peak", node[0], axes, combine=te.max)
    shifted = builder.elementwise("shifted", lambda x, m: exp(x - m), node[0], peak)
    keep = bool(node.attribute("keepdims", 1))
    total = reduce(builder, "sum", shifted, axes, keep=keep)
    peak = builder.reshape(peak, total.shape)
    return builder.elementwise("log_sum", lambda s, m: te.log(s) + m, total, peak)


def _softmax(builder: Builder, node: Node) -> Value:
    return _along_axis(builder, node, lambda value, axis: softmax(builder, value, axis))


def _log_softmax(builder: Builder, node: Node) -> Value:
    def lower(value: Value, axis: int) -> Value:
        peak = reduce(builder, "peak", value, [axis], combine=te.max)
        total = reduce(
            builder,
            "total",
            builder.elementwise("exp", lambda x, m: exp(x - m), value, peak),
            [axis],
        )
        return builder.elementwise(
            "log_softmax", lambda x, m, s: x - m - te.log(s), value, peak, total
        )

    return _along_axis(builder, node, lower)


def _along_axis(builder: Builder, node: Node, lower: Callable[[Value, int], Value]) -> Value:
    value = node[0]
    if node.opset >= 13:
        return lower(value, node.axis(node.attribute("axis", -1), value.rank))
    # Before opset 13 everything from the axis on was one.
    axis = node.axis(node.attribute("axis", 1), value.rank)
    parts = [builder.simplify(size(part)) for part in (value.shape[:axis], value.shape[axis:])]
    return builder.reshape(lower(builder.reshape(value, parts), 1), value.shape)


def _arg(first_is_better: Callable[[Any, Any], Any]) -> Lowering:
    """The position of the best entry along an axis."""

    def better(one: Any, other: Any, last: bool) -> Any:
        tie = one[0] > other[0] if last else one[0] < other[0]
        return tirx.any(first_is_better(one[1], other[1]), tirx.all(tirx.EQ(one[1], other[1]), tie))

    def lower(builder: Builder, node: Node) -> Value:
        value = node[0]
        axis = node.axis(node.attribute("axis", 0), value.rank)
        keep = bool(node.attribute("keepdims", 1))
        last = bool(node.attribute("select_last_index", 0))
        lowest = bool(first_is_better(0, 1))

        def combine(one: Any, other: Any) -> Any:
            wins = better(one, other, last)
            return tuple(tirx.Select(wins, a, b) for a, b in zip(one, other, strict=True))

        def identity(index_type: str, dtype: str) -> Any:
            worst = te.max_value(dtype) if lowest else te.min_value(dtype)
            return tirx.const(-1 if last else (1 << 62), index_type), worst

        best = te.comm_reducer(combine, identity, name="best")

        def compute(x: Any) -> Any:
            k = te.reduce_axis((0, x.shape[axis]), "k")
            shape = [
                extent(1) if a == axis else dim
                for a, dim in enumerate(x.shape)
                if keep or a != axis
            ]

            def entry(*index: Any) -> Any:
                rest = list(index[:axis]) + list(index[axis + 1 if keep else axis :])
                source = [*rest[:axis], k, *rest[axis:]]
                return best((k, x(*source)), axis=k)

            positions, _ = te.compute(shape, entry, name="best")
            return te.compute(shape, lambda *index: positions(*index), name="position")

        return builder.te("arg", compute, value)

    return lower


def _cumsum(builder: Builder, node: Node) -> Value:
    value = node[0]
    axis = node.axis(int(np.asarray(node.known(1, "the axis")).item()), value.rank)
    exclusive, reverse = bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))

    def compute(x: Any) -> Any:
        k = te.reduce_axis((0, x.shape[axis]), "k")

        def entry(*index: Any) -> Any:
            source = [*index[:axis], k, *index[axis + 1 :]]
            low, high = (index[axis], k) if reverse else (k, index[axis])
            inside = low < high if exclusive else low <= high
            return te.sum(tirx.Select(inside, x(*source), like(0, x)), axis=k)

        return te.compute(x.shape, entry, name="cumsum")

    return builder.te("cumsum", compute, value)


LOWERINGS: dict[str, Lowering] = {
    "ArgMax": _arg(lambda x, y: x > y),
    "ArgMin": _arg(lambda x, y: x < y),
    "CumSum": _cumsum,
    "LogSoftmax": _log_softmax,
    "ReduceL1": _reduction(before=te.abs),
    "ReduceL2": _reduction(before=lambda x: x * x, after=te.sqrt),
    "ReduceLogSum": _reduction(after=te.log),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduction(combine=te.max),
    "ReduceMean": _mean,
    "ReduceMin": _reduction(combine=te.min),
    "ReduceProd": _reduction(combine=_product),
    "ReduceSum": _reduction(),
    "ReduceSumSquare": _reduction(before=lambda x: x * x),
    "Softmax": _softmax,
}
