"""The residual stream of a pre-LayerNorm model: its norms, its sums, and what writes into it."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ..uses import int_attribute
from .linears import Linear

LAYER_NORM = "LayerNormalization"


@dataclass(frozen=True, eq=False)
class Stream:
    """Values that Adds join and that nothing but LayerNorms and these Adds reads.

    Attributes:
        features: the length of the last axis.
        norms: the LayerNorms that read it.
        writers: values that enter it; others may read these too.
        sums: the Adds.
    """

    features: int
    norms: list[ir.Node] = field(default_factory=list)
    writers: list[ir.Value] = field(default_factory=list)
    sums: set[ir.Node] = field(default_factory=set)

    def reads(self, node: ir.Node) -> bool:
        """Whether a node is a norm or a sum of this stream."""
        return node in self.sums or node in self.norms


def stream_of(norm: ir.Node, linears: dict[ir.Value, Linear]) -> Stream | str:
    """The stream that a LayerNorm reads, or why it cannot be one of centred values.

    Args:
        norm: a LayerNormalization.
        linears: every linear by its output.
    """
    x = norm.inputs[0]
    features = None if x is None or x.shape is None or not len(x.shape) else x.shape[-1]
    if x is None or not isinstance(features, int):
        return "the length of the last axis is not known"
    reason = _unfit(norm)
    if reason:
        return reason
    stream, seen, pending = Stream(features), set[ir.Value](), [x]
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.shape is None or value.shape[-1:] != (features,):
            return f"{value.name} is broadcast over the features"
        producer = value.producer()
        if producer is not None and _is_sum(value, producer, linears):
            stream.sums.add(producer)
            pending += [operand for operand in producer.inputs if operand is not None]
            reason = _follow(value, stream, pending)
            if reason:
                return reason
        else:
            stream.writers.append(value)
            _follow_writer(value, stream)
    return stream


def _is_sum(value: ir.Value, producer: ir.Node, linears: dict[ir.Value, Linear]) -> bool:
    return (producer.domain, producer.op_type) == ("", "Add") and value not in linears


def _follow(value: ir.Value, stream: Stream, pending: list[ir.Value]) -> str:
    """Adds what reads a sum; says what may not read it."""
    if value.is_graph_output():
        return f"the model returns the residual stream, as {value.name}"
    for node, _ in value.uses():
        if node.op_type == LAYER_NORM and not node.domain:
            reason = _unfit(node)
            if reason:
                return reason
            stream.norms.append(node)
        elif (node.domain, node.op_type) == ("", "Add"):
            pending.append(node.outputs[0])
        else:
            return f"{node.op_type} reads the residual stream, which only LayerNorms may"
    return ""


def _follow_writer(value: ir.Value, stream: Stream) -> None:
    """Adds the norms that read a writer; what else reads it may read it as it is."""
    for node, _ in value.uses():
        if node.op_type == LAYER_NORM and not node.domain and not _unfit(node):
            stream.norms.append(node)


def _unfit(norm: ir.Node) -> str:
    """Why a LayerNorm is no RMSNorm of centred values; empty if it is."""
    x = norm.inputs[0]
    rank = 0 if x is None or x.shape is None else len(x.shape)
    if int_attribute(norm, "axis", -1) not in (-1, rank - 1):
        return f"{norm.outputs[0].name} is normalised over more than the last axis"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return f"the mean or deviation of {norm.outputs[0].name} is read"
    return ""
