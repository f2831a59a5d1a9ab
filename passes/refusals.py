"""Weights outside the reach of a rewrite: other operators, subgraph bodies, functions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .constants import FLOATS, quantised, trace
from .nodes import SCHEME, SITE
from .structures.base import DOMAIN
from .uses import Match, Unfit, int_attribute, match_use, weight_at

_OTHER_WEIGHTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Einsum"): (0, 1, 2),
    ("", "LSTM"): (1, 2),
    ("", "GRU"): (1, 2),
    ("", "RNN"): (1, 2),
    ("", "ConvTranspose"): (1,),
    ("", "DeformConv"): (1,),
    ("", "QLinearMatMul"): (0, 3),
    ("", "MatMulInteger"): (0, 1),
    ("", "QLinearConv"): (3,),
    ("", "ConvInteger"): (1,),
    ("com.microsoft", "Attention"): (1,),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "FusedGemm"): (0, 1),
    ("com.microsoft", "FusedConv"): (1,),
    ("com.microsoft", "EmbedLayerNormalization"): (2, 3, 4),
    ("com.microsoft", "MatMulNBits"): (1,),
    ("com.microsoft", "MatMulBnb4"): (1,),
    ("com.microsoft", "GatherBlockQuantized"): (0,),
    ("com.microsoft", "DynamicQuantizeMatMul"): (1,),
    ("com.microsoft", "MatMulIntegerToFloat"): (0, 1),
    ("com.microsoft", "QAttention"): (1,),
    ("com.microsoft", "QGemm"): (0, 3),
}
"""Operators that read a weight in a form of their own, and at which inputs."""


def refuse(model: ir.Model, node: ir.Node, static: set[ir.Value]) -> Iterator[Unfit]:
    """The weights that `node` keeps from being rewritten, each with the reason."""
    if node.domain == DOMAIN:
        if node.op_type != "Dense":
            yield Unfit(node.metadata_props.get(SITE, str(node.name)), _structured(node))
        return
    if node.op_identifier() in model.functions:
        yield from _passed_on(node)
    yield from _other_weights(node, static)
    for graph in _bodies(node):
        for inner in graph.all_nodes():
            yield from _inside(inner, f"inside a subgraph of {node.op_type}")


def refuse_functions(model: ir.Model) -> Iterator[Unfit]:
    """The weights that stand in the bodies of model-local functions."""
    for function in model.functions.values():
        if function.domain == DOMAIN:
            continue
        where = f"inside the model-local function {function.domain}::{function.name}"
        for node in function.all_nodes():
            for weight in _inside(node, where):
                yield Unfit(f"{function.name}/{weight.name}", where)


def _structured(node: ir.Node) -> str:
    return f"already structured: {node.metadata_props.get(SCHEME, node.op_type)}"


def _other_weights(node: ir.Node, static: set[ir.Value]) -> Iterator[Unfit]:
    positions = _OTHER_WEIGHTS.get((node.domain, node.op_type), ())
    for value in (node.inputs[at] for at in positions if at < len(node.inputs)):
        path = trace(value)
        weight = weight_at(value, static)
        if path is not None and quantised(path.tensor.dtype) and len(path.tensor.shape) >= 2:
            yield Unfit(path.name, f"already quantised: {_bits(node)}{node.op_type}")
        elif isinstance(weight, Unfit):
            yield weight
        elif weight is not None:
            yield Unfit(weight.name, _reason(node))


def _bits(node: ir.Node) -> str:
    bits = int_attribute(node, "bits", 0)
    return f"{bits}-bit " if bits else ""


def _reason(node: ir.Node) -> str:
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return f"recurrent weight of {node.op_type}"
    if node.op_type == "Einsum":
        return f"weight of Einsum {node.attributes['equation'].as_string()}"
    return f"weight of {node.op_type}, which has no dense form here"


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _inside(node: ir.Node, where: str) -> Iterator[Unfit]:
    found = match_use(node, set())
    if isinstance(found, Match):
        yield Unfit(found.path.name, where)
    elif found is not None:
        yield Unfit(found.name, where)
    for weight in _other_weights(node, set()):
        yield Unfit(weight.name, where)


def _passed_on(node: ir.Node) -> Iterator[Unfit]:
    for value in node.inputs:
        path = trace(value)
        if path is not None and len(path.tensor.shape) >= 2 and path.tensor.dtype in FLOATS:
            reason = f"passed to the model-local function {node.domain}::{node.op_type}"
            yield Unfit(path.name, reason)
