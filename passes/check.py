"""`check(model)`: each value is defined once, before it is read, by an operator that is known."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from .errors import CheckError
from .structures.base import DOMAIN

_LARGEST = 1024
"""Initializers of more elements are shown to onnx's checker as inputs: it needs no weights, and
could not take more than 2 GiB of them."""


def check(model: ir.Model) -> None:
    """Raises unless the model is well-formed; reads no weights and changes nothing.

    Checked here: every node of the domain `undense` has its function, every domain an opset
    import, every initializer its data. Checked by onnx: names that are assigned once and before
    they are read, attributes and arity of every standard operator, in functions and subgraphs too.

    Raises:
        CheckError: names the node or value, and what is wrong.
    """
    for value in model.graph.initializers.values():
        if value.const_value is None:
            raise CheckError(f"initializer {value.name!r} has no data; load or capture it again")
    _check_nodes(model, model.graph.all_nodes(), model.opset_imports, "the model")
    for function in model.functions.values():
        where = f"function {function.domain}::{function.name}"
        _check_nodes(model, function.all_nodes(), function.opset_imports, where)
    try:
        onnx.checker.check_model(ir.to_proto(_without_weights(model)))
    except onnx.checker.ValidationError as error:
        raise CheckError(f"the model is not valid ONNX: {error}") from error


def _check_nodes(
    model: ir.Model, nodes: Iterable[ir.Node], imports: dict[str, int], where: str
) -> None:
    for node in nodes:
        if node.domain not in imports:
            raise CheckError(
                f"node {node.name!r}: {where} does not import the domain {node.domain!r} of "
                f"{node.op_type}; add it to its opset imports"
            )
        if node.domain == DOMAIN and node.op_identifier() not in model.functions:
            raise CheckError(
                f"node {node.name!r}: the model has no function for {DOMAIN}.{node.op_type}; "
                "rewrite the model again"
            )


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy that shares small initializers and has large ones as inputs."""
    # Values that nothing defines are left in the copy, for the checker to name them.
    graph = model.graph.clone(allow_outer_scope_values=True)
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _LARGEST:
            continue
        del graph.initializers[str(value.name)]
        value.const_value, value.type = None, ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        if not value.is_graph_input():
            graph.inputs.append(value)
    functions = tuple(model.functions.values())
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)
