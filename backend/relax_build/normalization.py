"""LayerNormalization, RMSNormalization, BatchNormalization, GroupNormalization and kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from ..kernels.cuda import norm as cuda_norm
from ..kernels.gpu import on_gpu
from ..kernels.norm import norm_step
from .builder import Builder
from .dimensions import size
from .node import Lowering, Node
from .reduction import divide_by_count, mean, reduce
from .values import HALVES, Value, known, like


def _scaled(builder: Builder, value: Value, scale: Value, bias: Value | None) -> Value:
    if bias is None:
        return builder.elementwise("scale", lambda x, s: x * s, value, scale)
    return builder.elementwise("scale", lambda x, s, b: x * s + b, value, scale, bias)


def _inverse_root(builder: Builder, value: Value, epsilon: float) -> Value:
    return builder.elementwise(
        "inverse_root",
        lambda v: like(1.0, v) / te.sqrt(v + like(epsilon, v)),
        value,
    )


def _standardised(
    builder: Builder, value: Value, axes: Sequence[int], epsilon: float
) -> tuple[Value, Value, Value]:
    """(x − mean) / sqrt(variance + ε), the mean and the inverse root."""
    center = mean(builder, value, axes)
    deviation = builder.elementwise("deviation", lambda x, m: x - m, value, center)
    square = reduce(builder, "square", deviation, axes, before=lambda x: x * x)
    count = builder.simplify(size([value.shape[axis] for axis in axes]))
    inverse = _inverse_root(builder, divide_by_count(builder, square, count), epsilon)
    return builder.elementwise("standard", lambda d, r: d * r, deviation, inverse), center, inverse


def _stash(node: Node, value: Value) -> str:
    """The dtype in which the statistics are taken."""
    wants_float = node.attribute("stash_type", 1) == 1
    return "float32" if wants_float and value.dtype in HALVES else value.dtype


def normalised(builder: Builder, value: Value, epsilon: float, *, centered: bool) -> Value | None:
    """LayerNorm or RMSNorm over the last axis by one kernel; None where that is symbolic."""
    features = value.shape[-1]
    if not isinstance(features, int) or value.dtype != "float32":
        return None
    if on_gpu():
        x = value.widened or value
        return builder.steps(
            lambda: [cuda_norm.norm_step(features, epsilon, x.dtype, centered=centered)], x, {}
        )
    return builder.steps(lambda: [norm_step(features, epsilon, centered=centered)], value, {})


def _layer_norm(builder: Builder, node: Node) -> list[Value]:
    value = builder.cast(node[0], _stash(node, node[0]))
    first = node.axis(node.attribute("axis", -1), value.rank)
    axes = list(range(first, value.rank))
    epsilon = float(node.attribute("epsilon", 1e-5))
    if len(axes) == 1 and not node.used(1) and not node.used(2):
        fused = normalised(builder, value, epsilon, centered=True)
        if fused is not None:
            result = builder.cast(fused, node[0].dtype)
            return [_scaled(builder, result, node[1], node.get(2))]
    standard, center, inverse = _standardised(builder, value, axes, epsilon)
    result = builder.cast(standard, node[0].dtype)
    return [_scaled(builder, result, node[1], node.get(2)), center, inverse]


def _rms_norm(builder: Builder, node: Node) -> Value:
    value = builder.cast(node[0], _stash(node, node[0]))
    first = node.axis(node.attribute("axis", -1), value.rank)
    axes = list(range(first, value.rank))
    epsilon = float(node.attribute("epsilon", 1e-5))
    if len(axes) == 1:
        fused = normalised(builder, value, epsilon, centered=False)
        if fused is not None:
            return _scaled(builder, builder.cast(fused, node[0].dtype), node[1], None)
    square = reduce(builder, "square", value, axes, before=lambda x: x * x)
    count = builder.simplify(size([value.shape[axis] for axis in axes]))
    inverse = _inverse_root(builder, divide_by_count(builder, square, count), epsilon)
    standard = builder.elementwise("standard", lambda x, r: x * r, value, inverse)
    return _scaled(builder, builder.cast(standard, node[0].dtype), node[1], None)


def _per_channel(builder: Builder, value: Value, rank: int) -> Value:
    return builder.reshape(value, [*value.shape, *[1] * (rank - 2)])


def _folded(
    dtype: str, scale: Value, bias: Value, center: Value, variance: Value, epsilon: float
) -> tuple[Value, Value]:
    """The factor and the summand that known statistics come to."""
    known_values = [scale, bias, center, variance]
    s, b, m, v = (np.asarray(item.host, np.float64) for item in known_values)
    factor = s / np.sqrt(v + epsilon)
    # All that they depend on: values of one name are one parameter.
    name = ",".join([*(item.name for item in known_values), f"{epsilon:g}"])
    shift = b - m * factor
    return known(factor, dtype, f"{name}.factor"), known(shift, dtype, f"{name}.shift")


def _batch_norm(builder: Builder, node: Node) -> Value:
    if node.attribute("training_mode", 0) or any(node.used(index) for index in range(1, 5)):
        raise node.refusal("training mode is not covered")
    value = node[0]
    scale, bias, center, variance = (
        _per_channel(builder, node[index], value.rank) for index in range(1, 5)
    )
    epsilon = float(node.attribute("epsilon", 1e-5))
    if scale.static and bias.static and center.static and variance.static:
        return _scaled(
            builder, value, *_folded(value.dtype, scale, bias, center, variance, epsilon)
        )

    def normalise(x: Any, s: Any, b: Any, m: Any, v: Any) -> Any:
        return (x - m) / te.sqrt(v + like(epsilon, v)) * s + b

    return builder.elementwise("batch_norm", normalise, value, scale, bias, center, variance)


def _instance_norm(builder: Builder, node: Node) -> Value:
    value = node[0]
    axes = list(range(2, value.rank))
    epsilon = float(node.attribute("epsilon", 1e-5))
    standard, *_ = _standardised(builder, value, axes, epsilon)
    scale, bias = (_per_channel(builder, node[index], value.rank) for index in (1, 2))
    return _scaled(builder, standard, scale, bias)


def _group_norm(builder: Builder, node: Node) -> Value:
    value, groups = node[0], int(node.attribute("num_groups"))
    batch, channels, *rest = value.shape
    if node.opset < 21:
        raise node.refusal("its scale is per group before opset 21")
    grouped = builder.reshape(value, [batch, groups, channels // groups, *rest])
    epsilon = float(node.attribute("epsilon", 1e-5))
    standard, *_ = _standardised(builder, grouped, list(range(2, grouped.rank)), epsilon)
    scale, bias = (_per_channel(builder, node[index], value.rank) for index in (1, 2))
    return _scaled(builder, builder.reshape(standard, value.shape), scale, bias)


def _lp_norm(builder: Builder, node: Node) -> Value:
    value = node[0]
    axis, order = node.axis(node.attribute("axis", -1), value.rank), node.attribute("p", 2)
    if order == 1:
        length = reduce(builder, "length", value, [axis], before=te.abs)
    else:
        square = reduce(builder, "square", value, [axis], before=lambda x: x * x)
        length = builder.elementwise("length", te.sqrt, square)
    zero = tirx.const(0.0, value.dtype)
    return builder.elementwise(
        "normalise", lambda x, n: tirx.Select(tirx.EQ(n, zero), zero, x / n), value, length
    )


LOWERINGS: dict[str, Lowering] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
}
