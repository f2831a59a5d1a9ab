"""`x / √(mean(x²) + ε) · γ + β`: an RMSNorm in the place of a LayerNorm of centred values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..edits import number
from ..uses import float_attribute

_EPSILON = float(np.float32(1e-5))
"""What ONNX takes where a norm has none, as the float32 that attributes are."""


def to_rms_norm(norm: ir.Node, opset: int) -> None:
    """Replaces a LayerNormalization of centred values by `x / √(mean(x²) + ε) · γ + β`.

    Below opset 23, which has RMSNormalization, it is spelled out in the way that `relax_build` and
    exporters know.
    """
    graph, (x, scale, *rest) = norm.graph, norm.inputs
    old, epsilon = norm.outputs[0], float_attribute(norm, "epsilon", _EPSILON)
    if not isinstance(graph, ir.Graph) or x is None or scale is None or x.dtype is None:
        raise ValueError(f"{norm.name}: it is no norm of a typed value")
    tape, dtype = ir.tape.Tape(), x.dtype.numpy()
    if opset >= 23:
        attributes = {"axis": -1, "epsilon": epsilon}
        new = tape.op("RMSNormalization", [x, scale], attributes=attributes)
    else:
        two = number(graph, "two", np.array(2, dtype))
        shift = number(graph, "epsilon", np.array(epsilon, dtype))
        square = tape.op("Pow", [x, two])
        square.type, square.shape = x.type, x.shape
        mean = reduce_mean(tape, graph, square)
        inverse = tape.op("Reciprocal", [tape.op("Sqrt", [tape.op("Add", [mean, shift])])])
        for node in tape.nodes[2:]:
            node.outputs[0].shape = mean.shape
        new = tape.op("Mul", [tape.op("Mul", [x, inverse]), scale])
    if rest and rest[0] is not None:
        new = tape.op("Add", [new, rest[0]])
    for node in tape.nodes:
        node.metadata_props.update(norm.metadata_props)
        node.outputs[0].dtype = x.dtype
        node.outputs[0].shape = node.outputs[0].shape or x.shape
    norm.prepend(tape.nodes)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    new.name = name


def reduce_mean(tape: ir.tape.Tape, graph: ir.Graph, value: ir.Value) -> ir.Value:
    """`mean(value)` over the last axis, which stays with length one."""
    if graph.opset_imports.get("", 0) >= 18:
        axes = number(graph, "last_axis", np.array([-1], np.int64))
        mean = tape.op("ReduceMean", [value, axes], attributes={"keepdims": 1})
    else:
        mean = tape.op("ReduceMean", [value], attributes={"axes": [-1], "keepdims": 1})
    mean.type = value.type
    mean.shape = None if value.shape is None else ir.Shape([*value.shape[:-1], 1])
    return mean
