"""Runs a rewritten model in plain numpy, in float64: what an engine's output is judged against.

Standard operators are onnx's own reference implementations, called node by node so that weights
are converted when they are needed and values are dropped after their last use; operators of the
domain `undense` are the `reference` of their structure, which rounds activations where the engines
do. The result has no error but that of the structures themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ..passes.errors import LoweringError
from ..passes.nodes import read_node
from ..passes.structures.base import DOMAIN


class Erf(OpRun):
    """`erf(x)` in the precision of x: onnx's own rounds to float32."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (_erf(x),)


class Gelu(OpRun):
    """`x Φ(x)` in the precision of x: onnx's own takes its constants in float32."""

    op_domain = ""

    def _run(self, x: NDArray[Any], approximate: str = "none") -> tuple[NDArray[Any]]:
        if approximate == "tanh":
            inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        else:
            inner = _erf(x / math.sqrt(2))
        return ((0.5 * x * (1 + inner)).astype(x.dtype),)


def _erf(x: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.vectorize(math.erf, otypes=[x.dtype])(x)
    return found


_FLOATS = {np.dtype(np.float16): 10, np.dtype(np.float32): 1, np.dtype(np.float64): 11}
_FLOAT_TYPES = frozenset(_FLOATS.values()) | {onnx.TensorProto.BFLOAT16}


def run_reference(
    model: ir.Model,
    inputs: Mapping[str, NDArray[Any]],
    dtype: type[np.floating[Any]] = np.float64,
    *,
    round_activations: bool = True,
) -> dict[str, NDArray[Any]]:
    """The outputs of `model` by name, every floating value in `dtype`.

    Args:
        model: the rewritten model; functions outside the domain `undense` must be inlined.
        inputs: an array for each graph input; floating ones are converted to `dtype`.
        dtype: float64 for the reference; float32 shows what rounding alone costs.
        round_activations: False leaves out the rounding of `activations=int8`, whose effect is
            the difference.

    Raises:
        LoweringError: an operator without reference implementation; names the node.
    """
    graph, wanted = model.graph, np.dtype(dtype)
    values: dict[str, Any] = {name: _as(array, wanted) for name, array in inputs.items()}
    remaining = Counter(name for node in graph for name in _reads(node))
    remaining.update(str(value.name) for value in graph.outputs)

    def run(node: ir.Node) -> Sequence[Any]:
        if node.domain == DOMAIN:
            return [_run_structured(graph, node, values, wanted, round_activations)]
        return _run(model, node, values, wanted)

    for node in graph:
        for output, result in zip(node.outputs, run(node), strict=False):
            if remaining[str(output.name)]:
                values[str(output.name)] = result
        for name in _reads(node):
            remaining[name] -= 1
            if not remaining[name]:
                values.pop(name, None)
    return {
        str(output.name): _read(graph, values, str(output.name), wanted) for output in graph.outputs
    }


def _run(
    model: ir.Model, node: ir.Node, values: dict[str, Any], dtype: np.dtype[Any]
) -> Sequence[Any]:
    proto = ir.serde.serialize_node(node)
    _convert_attributes(proto, dtype)
    # What only moves is widened afterwards: a whole vocabulary in float64 is a lot of memory.
    wanted = None if node.op_type in ("Gather", "Transpose") else dtype
    feeds = {name: _read(model.graph, values, name, wanted) for name in set(_reads(node))}
    single = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
            [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
        ),
        opset_imports=[
            onnx.helper.make_opsetid(domain, version)
            for domain, version in model.opset_imports.items()
        ],
    )
    try:
        found = iter(ReferenceEvaluator(single, new_ops=[Erf, Gelu]).run(None, feeds))
    except Exception as error:
        raise LoweringError(
            f"node {node.name!r}: {node.domain or 'ai.onnx'}.{node.op_type} has no numpy reference "
            f"({error}); without one the result cannot be verified, so it is not compiled"
        ) from error
    return [_as(next(found), dtype) if name else None for name in proto.output]


def _run_structured(
    graph: ir.Graph,
    node: ir.Node,
    values: dict[str, Any],
    dtype: np.dtype[Any],
    round_activations: bool,
) -> NDArray[Any]:
    structured = read_node(node)
    structure = structured.structure
    if not round_activations:
        structure = structure.with_activations("float")
    x = _read(graph, values, next(_reads(node)), dtype)
    if structured.gathers:
        return structure.reference_rows(structured.factors(), x, dtype)
    return structure.reference(structured.factors(), x)


def _reads(node: ir.Node) -> Iterator[str]:
    """Names of the values a node reads, those of its subgraphs that it captures included.

    The packed tensors of a structured node are read by `read_node`, not as values.
    """
    inputs = node.inputs[:1] if node.domain == DOMAIN else node.inputs
    yield from (str(value.name) for value in inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _captures(attribute.as_graph())


def _captures(graph: ir.Graph) -> Iterator[str]:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is not None and value.graph is not graph and value.producer() not in graph:
                yield str(value.name)


def _read(
    graph: ir.Graph, values: Mapping[str, Any], name: str, dtype: np.dtype[Any] | None
) -> NDArray[Any]:
    if name in values:
        return values[name]  # type: ignore[no-any-return]
    tensor = graph.initializers[name].const_value
    if tensor is None:
        raise LoweringError(f"initializer {name!r} has no data; load the model with its weights")
    return tensor.numpy() if dtype is None else _as(tensor.numpy(), dtype)


def _as(array: Any, dtype: np.dtype[Any]) -> Any:
    if not isinstance(array, np.ndarray | np.generic):
        return array
    is_float = array.dtype in _FLOATS or array.dtype.name == "bfloat16"
    return np.asarray(array).astype(dtype, copy=False) if is_float else np.asarray(array)


def _convert_attributes(proto: onnx.NodeProto, dtype: np.dtype[Any]) -> None:
    """Turns floating constants and Cast targets into `dtype`, in subgraphs too."""
    for attribute in proto.attribute:
        if attribute.name == "to" and attribute.i in _FLOAT_TYPES and proto.op_type == "Cast":
            attribute.i = _FLOATS[dtype]
        elif attribute.type == onnx.AttributeProto.TENSOR:
            if attribute.t.data_type in _FLOAT_TYPES:
                array = onnx.numpy_helper.to_array(attribute.t).astype(dtype)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))
        elif attribute.type == onnx.AttributeProto.GRAPH:
            for node in attribute.g.node:
                _convert_attributes(node, dtype)
        elif proto.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            single = attribute.name == "value_float"
            floats = np.asarray(attribute.f if single else attribute.floats, np.float32)
            tensor = onnx.numpy_helper.from_array(floats.astype(dtype))
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
