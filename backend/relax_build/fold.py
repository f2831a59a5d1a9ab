"""Evaluates nodes whose inputs are known while building: constants, and arithmetic on shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from tvm import te, tirx

from .builder import Builder
from .node import Node
from .values import SUPPORTED, Dim, Value, known

_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile", "EyeLike", "OneHot"})
"""Operators whose output can be far larger than their inputs: their lowerings decide."""

_NOT_FOLDED = frozenset({"Dropout", "RandomNormal", "RandomUniform", "Transpose", *_GROWING})


def fold(builder: Builder, node: Node) -> list[Value] | None:
    """The outputs of a node whose inputs are all known, or None where it must be emitted."""
    values = [value for value in node.inputs if value is not None]
    if not values or node.node.domain or any(value.host is None for value in values):
        return None
    if any(value.symbolic for value in values):
        return _fold_symbolic(builder, node)
    if node.node.op_type in _NOT_FOLDED:
        return None
    return _fold_plain(node)


def _fold_plain(node: Node) -> list[Value]:
    """One node by onnx's reference implementation."""
    proto = ir.serde.serialize_node(node.node)
    names = [value.name for value in node.node.inputs if value is not None and value.name]
    feeds = {
        str(value.name): given.host
        for value, given in zip(node.node.inputs, node.inputs, strict=True)
        if value is not None and given is not None
    }
    single = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)],
            [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
        ),
        opset_imports=[onnx.helper.make_opsetid("", node.opset)],
    )
    try:
        results = iter(ReferenceEvaluator(single).run(None, feeds))
    except Exception as error:
        raise node.refusal(f"cannot be evaluated on constants ({error})") from error
    folded = []
    for name in proto.output:
        array = np.asarray(next(results)) if name else np.zeros(0, np.float32)
        dtype = ir.DataType.from_numpy(array.dtype)
        if dtype not in SUPPORTED:
            raise node.refusal(f"type {dtype.name} is not covered")
        folded.append(known(array, SUPPORTED[dtype], name))
    return folded


def _fold_symbolic(builder: Builder, node: Node) -> list[Value] | None:
    function = _SYMBOLIC.get(node.node.op_type)
    result = None if function is None else function(builder, node)
    if result is None:
        return None
    results = result if isinstance(result, list) else [result]
    dtype = _result_dtype(node)
    return [known(_simplified(builder, array), dtype, "") for array in results]


def _result_dtype(node: Node) -> str:
    if node.node.op_type in _COMPARISONS:
        return "bool"
    if node.node.op_type == "Cast":
        return SUPPORTED[ir.DataType(node.attribute("to"))]
    return node[1 if node.node.op_type == "Where" else 0].dtype


def _simplified(builder: Builder, entries: Any) -> NDArray[Any]:
    array = entries if isinstance(entries, np.ndarray) else _boxed(entries)
    if array.dtype != object:
        return array
    entries = [builder.simplify(entry) for entry in array.flat]
    result = np.empty(array.shape, dtype=object)
    result.reshape(-1)[:] = entries
    return result


def _boxed(entry: Any) -> NDArray[Any]:
    """An array without axes: numpy hands out its bare entry instead."""
    array = np.empty((), dtype=object)
    array[()] = entry
    return array


_Symbolic = Callable[[Builder, Node], "NDArray[Any] | list[NDArray[Any]] | None"]


def _arrays(node: Node) -> list[NDArray[Any]]:
    return [value.host.astype(object) for value in node.inputs if value and value.host is not None]


def _entrywise(function: Callable[[Any, Any], Any]) -> _Symbolic:
    def fold_node(builder: Builder, node: Node) -> NDArray[Any] | None:
        if any(value is not None and "int" not in value.dtype for value in node.inputs):
            return None
        result, *rest = _arrays(node)
        for other in rest:
            result = np.frompyfunc(function, 2, 1)(result, other)
        return result

    return fold_node


def _compare(holds: Callable[[Any, Any], Any], fails: Callable[[Any, Any], Any]) -> _Symbolic:
    """A comparison where the answer is the same for all values of the symbols."""

    def fold_node(builder: Builder, node: Node) -> NDArray[Any] | None:
        first, second = np.broadcast_arrays(*_arrays(node))
        answers = []
        for one, other in zip(first.flat, second.flat, strict=True):
            if builder.proves(holds(one, other)):
                answers.append(True)
            elif builder.proves(fails(one, other)):
                answers.append(False)
            else:
                return None
        return np.asarray(answers, dtype=bool).reshape(first.shape)

    return fold_node


def _quotient(first: Dim, second: Dim) -> Dim:
    if isinstance(first, int) and isinstance(second, int):
        return int(first / second)
    return tirx.truncdiv(first, second)


def _smaller(first: Dim, second: Dim) -> Dim:
    both = isinstance(first, int) and isinstance(second, int)
    return min(first, second) if both else te.min(first, second)


def _larger(first: Dim, second: Dim) -> Dim:
    both = isinstance(first, int) and isinstance(second, int)
    return max(first, second) if both else te.max(first, second)


def _cast(builder: Builder, node: Node) -> NDArray[Any] | None:
    to = SUPPORTED.get(ir.DataType(node.attribute("to")), "")
    return node[0].host if to in ("int32", "int64") else None


def _where(builder: Builder, node: Node) -> NDArray[Any] | None:
    if node[0].symbolic:
        return None
    condition, first, second = _arrays(node)
    return np.where(condition.astype(bool), first, second)


def _gather(builder: Builder, node: Node) -> NDArray[Any] | None:
    if node[1].symbolic:
        return None
    data, indices = _arrays(node)
    return np.take(data, indices.astype(np.int64), axis=node.attribute("axis", 0))


def _concat(builder: Builder, node: Node) -> NDArray[Any]:
    return np.concatenate(_arrays(node), axis=node.attribute("axis"))


def _squeeze(builder: Builder, node: Node) -> NDArray[Any]:
    axes = node.ints(1, "axes")
    data = _arrays(node)[0]
    return np.squeeze(data, axis=None if axes is None else tuple(axes))


def _unsqueeze(builder: Builder, node: Node) -> NDArray[Any]:
    return np.expand_dims(_arrays(node)[0], tuple(node.ints(1, "axes") or ()))


def _reshape(builder: Builder, node: Node) -> NDArray[Any] | None:
    shape = node.ints(1, "shape")
    if node[1].symbolic or shape is None or 0 in shape:
        return None
    return _arrays(node)[0].reshape(shape)


def _slice(builder: Builder, node: Node) -> NDArray[Any] | None:
    if any(value is not None and value.symbolic for value in node.inputs[1:]):
        return None
    data = _arrays(node)[0]
    starts, ends = node.ints(1, "starts") or [], node.ints(2, "ends") or []
    axes = node.ints(3, "axes") or list(range(len(starts)))
    steps = node.ints(4, "steps") or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(cut)]


def _split(builder: Builder, node: Node) -> list[NDArray[Any]]:
    data, axis = _arrays(node)[0], node.attribute("axis", 0)
    sizes = node.ints(1, "split")
    count = len(node.node.outputs)
    if sizes is None:
        return np.array_split(data, count, axis=axis)
    return np.split(data, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def _reduce(function: Callable[[Dim, Dim], Dim]) -> _Symbolic:
    def fold_node(builder: Builder, node: Node) -> NDArray[Any] | None:
        data = _arrays(node)[0]
        axes = node.ints(1, "axes")
        if data.ndim != 1 or (axes is not None and axes not in ([0], [-1])):
            return None
        result: Dim = data[0]
        for entry in data[1:]:
            result = function(result, entry)
        return np.asarray([result] if node.attribute("keepdims", 1) else result, dtype=object)

    return fold_node


def _identity(builder: Builder, node: Node) -> NDArray[Any] | None:
    return node[0].host


_COMPARISONS: dict[str, _Symbolic] = {
    "Equal": _compare(lambda x, y: x == y, lambda x, y: _unequal(x, y)),
    "Greater": _compare(lambda x, y: x > y, lambda x, y: x <= y),
    "GreaterOrEqual": _compare(lambda x, y: x >= y, lambda x, y: x < y),
    "Less": _compare(lambda x, y: x < y, lambda x, y: x >= y),
    "LessOrEqual": _compare(lambda x, y: x <= y, lambda x, y: x > y),
}


def _unequal(first: Dim, second: Dim) -> Any:
    both = isinstance(first, int) and isinstance(second, int)
    return first != second if both else tirx.NE(first, second)


_SYMBOLIC: dict[str, _Symbolic] = {
    **_COMPARISONS,
    "Add": _entrywise(lambda x, y: x + y),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _entrywise(_quotient),
    "Gather": _gather,
    "Identity": _identity,
    "Max": _entrywise(_larger),
    "Min": _entrywise(_smaller),
    "Mul": _entrywise(lambda x, y: x * y),
    "ReduceMax": _reduce(_larger),
    "ReduceMin": _reduce(_smaller),
    "ReduceProd": _reduce(lambda x, y: x * y),
    "ReduceSum": _reduce(lambda x, y: x + y),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _entrywise(lambda x, y: x - y),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
