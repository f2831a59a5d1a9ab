"""Conv and pooling, for any number of spatial axes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from ..kernels.blocks import LANES, block_count, interleave
from ..kernels.convolution import Convolution, convolution_step
from ..kernels.depthwise import MOST_ENTRIES, Depthwise, depthwise_step
from ..kernels.gpu import on_gpu
from ..kernels.mathematics import dtype_of
from ..kernels.windows import Windows, count_windows
from .builder import OUT_ELEMENTWISE_FUSABLE, Builder
from .dimensions import extent, is_number, size
from .matmul import batched, linear
from .node import Lowering, Node
from .reduction import mean, reduce
from .slicing import pad
from .values import Dim, Value, channels_second, known, like

CONVOLUTION = "convolution"
"""Name of the block that sums the windows, by which its schedule knows it."""

_FLOATS = ("float32", "float32")
"""Of x and the weight, for the kernels."""


def _windows(node: Node, value: Value, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    count = len(kernel)
    strides = node.attribute("strides") or [1] * count
    dilations = node.attribute("dilations") or [1] * count
    return list(strides), list(dilations)


def _pads(
    node: Node,
    value: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[Dim], list[Dim]]:
    """Entries to add before and after each spatial axis."""
    count = len(kernel)
    auto = node.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = node.attribute("pads") or [0] * (2 * count)
        return list(pads[:count]), list(pads[count:])
    if auto == "VALID":
        return [0] * count, [0] * count
    before: list[Dim] = []
    after: list[Dim] = []
    for length, width, stride, dilation in zip(
        value.shape[2:], kernel, strides, dilations, strict=True
    ):
        if not isinstance(length, int):
            raise node.refusal(f"auto_pad {auto} of a symbolic dimension is not covered")
        reach = (width - 1) * dilation + 1
        total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def _outputs(
    builder: Builder,
    sizes: Sequence[Dim],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[Dim]:
    """Windows along each axis of a padded input."""
    return [
        builder.simplify(count_windows(extent(size), width, stride, dilation))
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]


def _conv(builder: Builder, node: Node) -> Value:
    value, weight, bias = node[0], node[1], node.get(2)
    kernel = [int(dim) for dim in weight.shape[2:]]
    strides, dilations = _windows(node, value, kernel)
    before, after = _pads(node, value, kernel, strides, dilations)
    groups = int(node.attribute("group", 1))
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1])
    builder.require_equal(value.shape[1], inputs * groups)
    bare, low, high = _without_padding(value, before, after)
    windows = _known_windows(bare, kernel, strides, dilations, low, high)
    kernels = weight.static and (value.dtype, weight.dtype) == _FLOATS and not on_gpu()
    if windows is not None and kernels:
        result = _channels_last(builder, bare, weight, windows, groups)
        if result is not None:
            return _biased(builder, result, bias)
    value = pad(builder, node, value, [0, 0, *before], [0, 0, *after])
    spatial = _outputs(builder, value.shape[2:], kernel, strides, dilations)
    if groups == 1 and all(step == 1 for step in [*kernel, *strides]):
        return _pointwise(builder, value, weight, bias)
    per_group = outputs // groups

    def compute(x: Any, w: Any, spatial: list[Any]) -> Any:
        channel = te.reduce_axis((0, extent(inputs)), "c")
        window = [te.reduce_axis((0, extent(width)), f"k{a}") for a, width in enumerate(kernel)]

        def entry(batch: Any, out: Any, *place: Any) -> Any:
            at = [
                position * stride + step * dilation
                for position, step, stride, dilation in zip(
                    place, window, strides, dilations, strict=True
                )
            ]
            source = channel
            if groups > 1:
                source = tirx.floordiv(out, per_group) * inputs + channel
            return te.sum(x(batch, source, *at) * w(out, channel, *window), axis=[channel, *window])

        shape = [x.shape[0], extent(outputs), *map(extent, spatial)]
        return te.compute(shape, entry, name=CONVOLUTION)

    attributes = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
    result = builder.te("conv", compute, value, weight, spatial, attributes=attributes)
    return _biased(builder, result, bias)


def _without_padding(
    value: Value, before: Sequence[Dim], after: Sequence[Dim]
) -> tuple[Value, list[Dim], list[Dim]]:
    """The value before zeros were put around it, which the convolution then adds itself."""
    if value.padded is None:
        return value, list(before), list(after)
    bare, *padding = value.padded
    if any(not is_number(amount, 0) for added in padding for amount in added[:2]):
        return value, list(before), list(after)
    low, high = (
        [own + more for own, more in zip(ends, added[2:], strict=True)]
        for ends, added in zip((before, after), padding, strict=True)
    )
    return bare, low, high


def _known_windows(
    value: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[Dim],
    after: Sequence[Dim],
) -> Windows | None:
    """The windows over two axes, of which the first is of length one if there is a single one."""
    if not 1 <= len(kernel) <= 2 or not all(isinstance(pad, int) for pad in (*before, *after)):
        return None

    def pair(part: Sequence[Any], first: int) -> Any:
        return (first, *part) if len(part) == 1 else tuple(part)

    image = [length if isinstance(length, int) else None for length in value.shape[2:]]
    return Windows(
        kernel=pair(kernel, 1),
        strides=pair(strides, 1),
        dilations=pair(dilations, 1),
        before=pair(before, 0),
        after=pair(after, 0),
        image=pair(image, 1),
    )


def _channels_last(
    builder: Builder, value: Value, weight: Value, windows: Windows, groups: int
) -> Value | None:
    """The convolution by a kernel that reads channels last; None where there is none for it."""
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1])
    array = weight.host
    assert array is not None
    last = list(range(2, value.rank))
    x = builder.transpose(value, [0, *last, 1])
    if groups == 1 and windows.pointwise:
        matrix = known(array.reshape(outputs, inputs).T, weight.dtype, weight.name)
        return _channels_second(builder, linear(builder, x, matrix))
    if groups == 1:
        step = convolution_step(Convolution(windows, inputs, outputs))
        shape: tuple[int, ...] = (block_count(outputs), windows.size * inputs, LANES)
        make = partial(_depth_last, array)
    elif inputs == 1 and groups == outputs >= LANES and windows.size <= MOST_ENTRIES:
        step = depthwise_step(Depthwise(windows, outputs))
        shape = (windows.size, outputs)
        make = partial(_channels_of_entries, array)
    else:
        return None
    high, wide = (
        builder.simplify(windows.outputs(axis, extent(length)))
        for axis, length in enumerate([1, *value.shape[2:]][-2:])
    )
    batch = value.shape[0]
    if value.rank == 3:
        x = builder.reshape(x, [batch, 1, *x.shape[1:]])
    rows = builder.simplify(size([batch, high, wide]))
    stored = builder.stored(weight.name, "packed", shape, weight.dtype, make)
    y = builder.call(step.name, step.function, [rows, outputs], x, stored, product=step)
    places = [high, wide] if value.rank == 4 else [wide]
    return _channels_second(builder, builder.reshape(y, [batch, *places, outputs]))


def _channels_second(builder: Builder, value: Value) -> Value:
    return builder.transpose(value, channels_second(value.rank))


def _depth_last(weight: NDArray[Any]) -> NDArray[Any]:
    """`[out, in, *window]` to panels of outputs, channels last."""
    return interleave(np.moveaxis(weight, 1, -1).reshape(len(weight), -1))


def _channels_of_entries(weight: NDArray[Any]) -> NDArray[Any]:
    """`[channels, 1, *window]` to `[entries, channels]`."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def _pointwise(builder: Builder, value: Value, weight: Value, bias: Value | None) -> Value:
    """A convolution of single entries: a product of weights and channels."""
    batch, inputs, *spatial = value.shape
    outputs = weight.shape[0]
    flat = builder.reshape(value, [batch, inputs, builder.simplify(size(spatial))])
    result = batched(builder, builder.reshape(weight, [outputs, inputs]), flat)
    return builder.reshape(_biased(builder, result, bias), [batch, outputs, *spatial])


def _biased(builder: Builder, value: Value, bias: Value | None) -> Value:
    if bias is None:
        return value
    bias = builder.reshape(bias, [bias.shape[0], *[1] * (value.rank - 2)])
    return builder.elementwise("bias", lambda x, b: x + b, value, bias)


def _pool(builder: Builder, node: Node) -> Value:
    value = node[0]
    average = node.node.op_type == "AveragePool"
    if not average and node.used(1):
        raise node.refusal("the indices of the maxima are not covered")
    kernel = [int(width) for width in node.attribute("kernel_shape")]
    strides, dilations = _windows(node, value, kernel)
    before, after = _pads(node, value, kernel, strides, dilations)
    if node.attribute("ceil_mode", 0):
        after = _ceiling(node, value, kernel, strides, dilations, before, after)
    padded = [
        builder.simplify(dim + low + high)
        for dim, low, high in zip(value.shape[2:], before, after, strict=True)
    ]
    spatial = _outputs(builder, padded, kernel, strides, dilations)
    count_pads = bool(node.attribute("count_include_pad", 0))

    def compute(x: Any, spatial: list[Any], low: list[Any]) -> Any:
        shape = [*x.shape[:2], *map(extent, spatial)]

        def at(place: Any, window: Any) -> list[Any]:
            return [
                position * stride + step * dilation - first
                for position, step, stride, dilation, first in zip(
                    place, window, strides, dilations, low, strict=True
                )
            ]

        def inside(places: list[Any]) -> Any:
            tests = [tirx.all(p >= 0, p < dim) for p, dim in zip(places, x.shape[2:], strict=True)]
            return functools.reduce(tirx.all, tests)

        def axes(name: str) -> list[Any]:
            return [
                te.reduce_axis((0, extent(width)), f"{name}{a}") for a, width in enumerate(kernel)
            ]

        window = axes("k")
        nothing = like(0, x) if average else te.min_value(dtype_of(x))
        combine = te.sum if average else te.max

        def entry(batch: Any, channel: Any, *place: Any) -> Any:
            places = at(place, window)
            read = tirx.if_then_else(inside(places), x(batch, channel, *places), nothing)
            return combine(read, axis=window)

        pooled = te.compute(shape, entry, name="pool")
        if not average:
            return pooled
        if count_pads:
            number = like(functools.reduce(operator.mul, kernel), x)
            return te.compute(shape, lambda *index: pooled(*index) / number, name="average")
        counted = axes("j")
        one, zero = like(1, x), like(0, x)

        def count(*place: Any) -> Any:
            return te.sum(tirx.Select(inside(at(place, counted)), one, zero), axis=counted)

        counts = te.compute(shape[2:], count, name="count")
        return te.compute(shape, lambda *index: pooled(*index) / counts(*index[2:]), name="average")

    return builder.te("pool", compute, value, spatial, list(before))


def _ceiling(
    node: Node,
    value: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[Dim],
    after: Sequence[Dim],
) -> list[Dim]:
    """Padding behind that makes room for a last, partial window that starts inside."""
    wider = []
    for length, width, stride, dilation, low, high in zip(
        value.shape[2:], kernel, strides, dilations, before, after, strict=True
    ):
        if not isinstance(length, int):
            raise node.refusal("ceil_mode of a symbolic dimension is not covered")
        reach = (width - 1) * dilation + 1
        windows = -(-(length + low + high - reach) // stride) + 1
        if (windows - 1) * stride >= length + low:
            windows -= 1
        wider.append((windows - 1) * stride + reach - length - low)
    return wider


def _global_pool(builder: Builder, node: Node) -> Value:
    axes = list(range(2, node[0].rank))
    if node.node.op_type == "GlobalMaxPool":
        return reduce(builder, "max", node[0], axes, combine=te.max)
    return mean(builder, node[0], axes)


LOWERINGS: dict[str, Lowering] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _pool,
}
