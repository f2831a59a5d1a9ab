"""Entry-wise operators: arithmetic, comparisons, activations, Cast, Where, Clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from ..kernels.mathematics import dtype_of, erf, exp, tanh
from .builder import Builder
from .node import Lowering, Node
from .values import SUPPORTED, Value, like


def _is_float(x: Any) -> bool:
    return dtype_of(x).startswith("float")


def _divide(x: Any, y: Any) -> Any:
    return x / y if _is_float(x) else tirx.truncdiv(x, y)


def _equal(x: Any, y: Any) -> Any:
    return tirx.Select(x, y, tirx.Not(y)) if dtype_of(x) == "bool" else tirx.EQ(x, y)


def _power(x: Any, y: Any) -> Any:
    if isinstance(y, tirx.FloatImm | tirx.IntImm):
        exponent = float(y.value)
        if exponent in (2.0, 3.0):
            return x * x if exponent == 2.0 else x * x * x
        if exponent == 0.5 and _is_float(x):
            return te.sqrt(x)
    if _is_float(x):
        return te.power(x, y.astype(dtype_of(x)))
    return te.power(x.astype("float64"), y.astype("float64")).astype(dtype_of(x))


def _sigmoid(x: Any) -> Any:
    return like(1.0, x) / (like(1.0, x) + exp(-x))


def _gelu(x: Any) -> Any:
    half, one = like(0.5, x), like(1.0, x)
    return half * x * (one + erf(x * like(math.sqrt(0.5), x)))


def _gelu_tanh(x: Any) -> Any:
    inner = x + like(0.044715, x) * x * x * x
    return like(0.5, x) * x * (like(1.0, x) + tanh(like(math.sqrt(2.0 / math.pi), x) * inner))


def _softplus(x: Any) -> Any:
    zero = like(0.0, x)
    return te.max(x, zero) + te.log(like(1.0, x) + exp(-te.abs(x)))


def _sign(x: Any) -> Any:
    zero, one = like(0, x), like(1, x)
    return tirx.Select(x > zero, one, tirx.Select(x < zero, zero - one, zero))


_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": te.abs,
    "Ceil": te.ceil,
    "Cos": te.cos,
    "Erf": erf,
    "Exp": exp,
    "Floor": te.floor,
    "IsNaN": te.isnan,
    "Log": te.log,
    "Neg": lambda x: like(0, x) - x if not _is_float(x) else -x,
    "Not": lambda x: tirx.Not(x),
    "Reciprocal": lambda x: like(1.0, x) / x,
    "Relu": lambda x: te.max(x, like(0, x)),
    "Round": te.nearbyint,
    "Sigmoid": _sigmoid,
    "Sign": _sign,
    "Sin": te.sin,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (like(1.0, x) + te.abs(x)),
    "Sqrt": te.sqrt,
    "Tanh": tanh,
}

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda x, y: x + y,
    "And": lambda x, y: tirx.all(x, y),
    "Div": _divide,
    "Equal": _equal,
    "Greater": lambda x, y: tirx.GT(x, y),
    "GreaterOrEqual": lambda x, y: tirx.GE(x, y),
    "Less": lambda x, y: tirx.LT(x, y),
    "LessOrEqual": lambda x, y: tirx.LE(x, y),
    "Mul": lambda x, y: x * y,
    "Or": lambda x, y: tirx.any(x, y),
    "PRelu": lambda x, slope: tirx.Select(x < like(0, x), x * slope, x),
    "Pow": _power,
    "Sub": lambda x, y: x - y,
    "Xor": lambda x, y: tirx.Select(x, tirx.Not(y), y),
}

_FOLDED: dict[str, Callable[[Any, Any], Any]] = {
    "Max": te.max,
    "Min": te.min,
    "Sum": lambda x, y: x + y,
}


def _unary(function: Callable[[Any], Any]) -> Lowering:
    return lambda builder, node: builder.elementwise(node.node.op_type.lower(), function, node[0])


def _binary(function: Callable[[Any, Any], Any]) -> Lowering:
    return lambda builder, node: builder.elementwise(
        node.node.op_type.lower(), function, node[0], node[1]
    )


def _folded(function: Callable[[Any, Any], Any]) -> Lowering:
    def lower(builder: Builder, node: Node) -> Value:
        result = node[0]
        for index in range(1, len(node.inputs)):
            result = builder.elementwise(node.node.op_type.lower(), function, result, node[index])
        return result

    return lower


def _mean(builder: Builder, node: Node) -> Value:
    total = _folded(_FOLDED["Sum"])(builder, node)
    assert isinstance(total, Value)
    count = len(node.inputs)
    return builder.elementwise("scale", lambda x: x / like(float(count), x), total)


def _mod(builder: Builder, node: Node) -> Value:
    if node.attribute("fmod", 0):
        function = lambda x, y: te.fmod(x, y) if _is_float(x) else tirx.truncmod(x, y)  # noqa: E731
    else:
        function = tirx.floormod
    return builder.elementwise("mod", function, node[0], node[1])


def _cast(builder: Builder, node: Node) -> Value:
    wanted = ir.DataType(node.attribute("to"))
    if wanted not in SUPPORTED:
        raise node.refusal(f"type {wanted.name} is not covered")
    return _to(builder, node[0], SUPPORTED[wanted])


def _cast_like(builder: Builder, node: Node) -> Value:
    return _to(builder, node[0], node[1].dtype)


def _to(builder: Builder, value: Value, dtype: str) -> Value:
    if dtype == "bool" and value.dtype != "bool":
        return builder.elementwise("cast", lambda x: tirx.NE(x, like(0, x)), value)
    return builder.cast(value, dtype)


def _where(builder: Builder, node: Node) -> Value:
    return builder.elementwise("where", tirx.Select, node[0], node[1], node[2])


def _clip(builder: Builder, node: Node) -> Value:
    value = node[0]
    low = node.get(1) or _scalar_attribute(node, "min", value.dtype)
    high = node.get(2) or _scalar_attribute(node, "max", value.dtype)
    limits = [limit for limit in (low, high) if limit is not None]

    def clip(x: Any, *limits: Any) -> Any:
        rest = list(limits)
        if low is not None:
            x = te.max(x, rest.pop(0))
        return te.min(x, rest.pop(0)) if high is not None else x

    return builder.elementwise("clip", clip, value, *limits)


def _scalar_attribute(node: Node, name: str, dtype: str) -> Value | None:
    value = node.attribute(name)
    return None if value is None else Value(dtype, (), host=np.asarray(value, dtype))


def _gelu_forms(builder: Builder, node: Node) -> Value:
    function = _gelu_tanh if node.attribute("approximate", "none") == "tanh" else _gelu
    return builder.elementwise("gelu", function, node[0])


def _parametric(name: str, function: Callable[..., Any], **defaults: float) -> Lowering:
    """An activation whose parameters are attributes."""

    def lower(builder: Builder, node: Node) -> Value:
        numbers = [float(node.attribute(key, value)) for key, value in defaults.items()]
        return builder.elementwise(name, lambda x: function(x, *numbers), node[0])

    return lower


def _leaky_relu(x: Any, alpha: float) -> Any:
    return tirx.Select(x < like(0.0, x), x * like(alpha, x), x)


def _elu(x: Any, alpha: float) -> Any:
    return tirx.Select(x < like(0.0, x), like(alpha, x) * (exp(x) - like(1.0, x)), x)


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    line = x * like(alpha, x) + like(beta, x)
    return te.max(like(0.0, x), te.min(like(1.0, x), line))


LOWERINGS: dict[str, Lowering] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    **{name: _folded(function) for name, function in _FOLDED.items()},
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Elu": _parametric("elu", _elu, alpha=1.0),
    "Gelu": _gelu_forms,
    "HardSigmoid": _parametric("hard_sigmoid", _hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": lambda builder, node: builder.elementwise(
        "hard_swish", lambda x: x * _hard_sigmoid(x, 1.0 / 6.0, 0.5), node[0]
    ),
    "LeakyRelu": _parametric("leaky_relu", _leaky_relu, alpha=0.01),
    "Mean": _mean,
    "Mod": _mod,
    "Swish": _parametric("swish", lambda x, a: x * _sigmoid(like(a, x) * x), alpha=1.0),
    "Where": _where,
}
