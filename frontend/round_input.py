"""`x̂ = s · rint(x / s)` in front of a product, where an input of the graph asks for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_SMALLEST = 127 / float(np.finfo(np.float32).max)
"""Of what is smaller than this nothing is left: `127 / max|x|` is infinite in float32."""
_AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


def round_input(
    graph: ir.Graph, node: ir.Node, block: ir.Value, features: int, dtype: ir.DataType
) -> None:
    """Has a node read its first input as `round_activations` of the structures makes it.

    Args:
        graph: the main one, which the node is in.
        node: its first input is `[..., features]`.
        block: int64 `[1]`, columns that share a scale; 0 leaves the input as it is.
        features: of the input.
        dtype: of it.
    """
    x = node.inputs[0]
    assert x is not None
    tape, opset = ir.tape.Tape(), graph.opset_imports.get("", 0)
    asked = tape.op("Greater", [block, _constant(tape, np.zeros(1, np.int64))])
    branches = {
        "then_branch": _rounding(x, block, features, dtype, opset),
        "else_branch": _identity(x),
    }
    chosen = tape.op("If", [asked], branches)
    chosen.type, chosen.shape = x.type, x.shape
    node.prepend(tape.nodes)
    node.replace_input_with(0, chosen)


def _rounding(
    x: ir.Value, block: ir.Value, features: int, dtype: ir.DataType, opset: int
) -> ir.Graph:
    tape = ir.tape.Tape()

    def constant(*values: float, dtype: type = np.int64) -> ir.Value:
        return _constant(tape, np.array(values, dtype))

    columns, zero = constant(features), constant(0)
    missing = tape.op("Mod", [tape.op("Sub", [zero, columns]), block])
    rows = tape.op(
        "Reshape", [tape.op("Cast", [x], {"to": ir.DataType.FLOAT}), constant(-1, features)]
    )
    pads = tape.op("Concat", [constant(0, 0, 0), missing], {"axis": 0})
    padded = tape.op("Pad", [rows, pads])
    blocks = tape.op("Reshape", [padded, tape.op("Concat", [constant(-1), block], {"axis": 0})])
    absolute = tape.op("Abs", [blocks])
    if opset >= _AXES_AS_INPUT:
        largest = tape.op("ReduceMax", [absolute, constant(1)], {"keepdims": 1})
    else:
        largest = tape.op("ReduceMax", [absolute], {"axes": [1], "keepdims": 1})
    steps = constant(127.0, dtype=np.float32)
    some = tape.op("Greater", [largest, constant(_SMALLEST, dtype=np.float32)])
    inverse = tape.op(
        "Where", [some, tape.op("Div", [steps, largest]), constant(0.0, dtype=np.float32)]
    )
    whole = tape.op("Round", [tape.op("Mul", [blocks, inverse])])
    rounded = tape.op("Mul", [whole, tape.op("Div", [largest, steps])])
    width = tape.op("Add", [columns, missing])
    back = tape.op("Reshape", [rounded, tape.op("Concat", [constant(-1), width], {"axis": 0})])
    part = tape.op("Slice", [back, zero, columns, constant(1)])
    shaped = tape.op("Reshape", [part, tape.op("Shape", [x])])
    return _graph(tape, tape.op("Cast", [shaped], {"to": dtype}), x)


def _identity(x: ir.Value) -> ir.Graph:
    tape = ir.tape.Tape()
    return _graph(tape, tape.op("Identity", [x]), x)


def _graph(tape: ir.tape.Tape, output: ir.Value, like: ir.Value) -> ir.Graph:
    output.type, output.shape = like.type, like.shape
    # Names of a branch must not be those of the graph around it, which are counted from 0 too.
    for number, node in enumerate(tape.nodes):
        node.outputs[0].name = f"undense.branch.{number}"
    return ir.Graph([], [output], nodes=tape.nodes, name="branch")


def _constant(tape: ir.tape.Tape, values: np.ndarray) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(values)})
