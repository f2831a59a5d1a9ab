"""`y = x Wᵀ` in its many spellings: which nodes apply a constant weight, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import onnx_ir as ir

from .constants import FLOATS, ConstantPath, quantised, sources, trace
from .structures.base import DOMAIN

UseForm = Literal["matmul", "left_matmul", "gemm", "conv", "gather"]


@dataclass(frozen=True, eq=False)
class Match:
    """A node that applies the constant behind `path`.

    Attributes:
        node, form, feature_axis, weight_input, transposed: as in `Use`.
        path: from the constant to the node.
    """

    node: ir.Node
    form: UseForm
    feature_axis: int | None
    path: ConstantPath
    weight_input: int
    transposed: bool


class Unfit(NamedTuple):
    """A weight that no structure can stand for, and why."""

    name: str
    reason: str


def match_use(node: ir.Node, static: set[ir.Value]) -> Match | Unfit | None:
    """How `node` applies a weight; None if it has none.

    Args:
        node: any node of the graph.
        static: the values that depend on constants alone.
    """
    if node.op_identifier()[:2] == (DOMAIN, "Dense"):
        return _match_matmul(node, static)
    if node.domain:
        return None
    match node.op_type:
        case "MatMul":
            return _match_matmul(node, static)
        case "Gemm":
            return _match_gemm(node, static)
        case "Conv":
            return _match_conv(node, static)
        case "Gather":
            return _match_gather(node, static)
    return None


def weight_at(value: ir.Value | None, static: set[ir.Value]) -> ConstantPath | Unfit | None:
    """The float constant of two axes or more behind `value`, or why it cannot be taken."""
    path = trace(value)
    if path is not None:
        return _float_weight(path)
    if value is None or value not in static or (value.shape is not None and len(value.shape) < 2):
        return None
    return _computed(value)


def _float_weight(path: ConstantPath) -> ConstantPath | Unfit | None:
    if len(path.tensor.shape) < 2:
        return None
    if quantised(path.tensor.dtype):
        behind = " behind Cast" if len(path.dtypes) > 1 else ""
        return Unfit(path.name, f"already quantised: {path.tensor.dtype}{behind}")
    if any(dtype not in FLOATS for dtype in path.dtypes):
        return None
    if path.value.is_graph_input():
        return Unfit(path.name, "is also an input of the model, which callers may override")
    return path


def _computed(value: ir.Value) -> Unfit | None:
    constants = [
        (source, tensor, reader)
        for source, tensor, reader in sources(value)
        if len(tensor.shape) >= 2
    ]
    for source, tensor, reader in constants:
        if quantised(tensor.dtype):
            reason = f"already quantised: {tensor.dtype} behind {reader.op_type}"
            return Unfit(str(source.name), reason)
    producer = value.producer()
    while producer is not None and producer.op_type in ("Transpose", "Identity", "Cast"):
        behind = producer.inputs[0]
        producer = None if behind is None else behind.producer()
    floats = [source for source, tensor, _ in constants if tensor.dtype in FLOATS]
    if not floats or producer is None:
        return None
    reason = f"weight is computed at run time, by {producer.op_type}"
    return Unfit(str(floats[0].name), reason)


def _match_matmul(node: ir.Node, static: set[ir.Value]) -> Match | Unfit | None:
    left, right = (weight_at(value, static) for value in node.inputs)
    if isinstance(right, Unfit):
        return right
    if right is not None:
        return _match_right(node, right, left)
    if left is None or isinstance(left, Unfit):
        return left
    if len(left.shape) > 2:
        return Unfit(left.name, f"batched weight of rank {len(left.shape)}")
    x = node.inputs[1]
    if x is None or x.shape is None:
        return Unfit(left.name, "the rank of what it multiplies is not known; infer shapes first")
    axis = -1 if len(x.shape) == 1 else -2
    return Match(node, "left_matmul", axis, left, 0, transposed=False)


def _match_right(
    node: ir.Node, right: ConstantPath, left: ConstantPath | Unfit | None
) -> Match | Unfit:
    if left is not None:
        return Unfit(right.name, "multiplies another constant")
    if len(right.shape) > 2:
        return Unfit(right.name, f"batched weight of rank {len(right.shape)}")
    return Match(node, "matmul", -1, right, 1, transposed=True)


def _match_gemm(node: ir.Node, static: set[ir.Value]) -> Match | Unfit | None:
    first, second = (weight_at(value, static) for value in node.inputs[:2])
    trans_a, trans_b = (bool(int_attribute(node, name, 0)) for name in ("transA", "transB"))
    if isinstance(second, ConstantPath) and first is not None:
        return Unfit(second.name, "multiplies another constant")
    if isinstance(second, ConstantPath):
        axis = 0 if trans_a else 1
        return Match(node, "gemm", axis, second, 1, transposed=not trans_b)
    if isinstance(first, ConstantPath) and second is None:
        axis = 1 if trans_b else 0
        return Match(node, "gemm", axis, first, 0, transposed=trans_a)
    return second if isinstance(second, Unfit) else first if isinstance(first, Unfit) else None


def _match_conv(node: ir.Node, static: set[ir.Value]) -> Match | Unfit | None:
    kernel = weight_at(node.inputs[1], static)
    if kernel is None or isinstance(kernel, Unfit):
        return kernel
    reason = _conv_reason(node, kernel.shape)
    if kernel.permutation != tuple(range(len(kernel.shape))):
        reason = reason or "kernel behind Transpose"
    if reason:
        return Unfit(kernel.name, reason)
    return Match(node, "conv", 1, kernel, 1, transposed=False)


def _conv_reason(node: ir.Node, shape: tuple[int, ...]) -> str:
    groups, window = int_attribute(node, "group", 1), shape[2:]
    text = "×".join(map(str, window))
    if groups > 1:
        return "depthwise convolution" if shape[1] == 1 else f"convolution in {groups} groups"
    if any(size != 1 for size in window):
        return f"{text} convolution"
    if any(step != 1 for step in _ints(node, "strides")):
        return f"{text} convolution with stride {max(_ints(node, 'strides'))}"
    if any(_ints(node, "pads")):
        return f"{text} convolution with padding"
    return ""


def _match_gather(node: ir.Node, static: set[ir.Value]) -> Match | Unfit | None:
    table = weight_at(node.inputs[0], static)
    if table is None or isinstance(table, Unfit):
        return table
    axis = int_attribute(node, "axis", 0)
    if len(table.shape) > 2:
        return Unfit(table.name, f"gathers from a table of rank {len(table.shape)}")
    if axis % 2 != 0:
        return Unfit(table.name, "gathers columns")
    return Match(node, "gather", None, table, 0, transposed=False)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """The integer attribute `name`, or what ONNX takes where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float = 1.0) -> float:
    """The number that the attribute `name` holds, or what ONNX takes where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_float()


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None or attribute.is_ref() else tuple(attribute.as_ints())
