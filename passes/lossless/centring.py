"""`v -> v − mean(v)` for what writes into a residual stream: in its constants where that is exact.

With `J = I − 11ᵀ/d`, a linear `x Wᵀ + b` is centred by `W ← J W`, `b ← J b`, a table by its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constants import constant_tensor
from ..edits import edit, readers
from ..uses import int_attribute
from .linears import Linear
from .root_mean_square import reduce_mean
from .stream import Stream

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Centring:
    """How each writer of a stream is centred.

    Attributes:
        linears: by their weights and biases.
        tables: constants, by their rows.
        values: by a mean that is taken at run time.
    """

    linears: list[Linear] = field(default_factory=list)
    tables: list[ir.Value] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)


def centring(stream: Stream, linears: dict[ir.Value, Linear]) -> Centring:
    """Sorts the writers of a stream."""
    found = Centring()
    for value in stream.writers:
        own = all(stream.reads(node) for node, _ in value.uses()) and not value.is_graph_output()
        linear = linears.get(value)
        table = _table(value)
        if own and linear is not None and not linear.obstacle():
            found.linears.append(linear)
        elif own and table is not None:
            found.tables.append(table)
        else:
            found.values.append(value)
    return found


def centre(graph: ir.Graph, stream: Stream, found: Centring) -> None:
    """Centres every writer in place."""
    for linear in found.linears:
        linear.edit_weight(lambda weight: weight - weight.mean(axis=0))
        if linear.bias is not None:
            linear.edit_bias(lambda bias: bias - bias.mean())
    for table in found.tables:
        edit(table, lambda rows: rows - rows.mean(axis=-1, keepdims=True))
    for value in found.values:
        _centre_value(graph, stream, value)


def _table(value: ir.Value) -> ir.Value | None:
    """The constant whose rows a writer holds, if nothing else reads it."""
    producer = value.producer()
    if producer is None:
        return value if _is_own(value, None) else None
    source = producer.inputs[0] if producer.inputs else None
    if producer.domain or source is None or not _is_own(source, producer):
        return None
    rank = len(source.shape or ())
    if producer.op_type == "Gather":
        return source if rank == 2 and int_attribute(producer, "axis", 0) in (0, -2) else None
    if producer.op_type == "Slice" and len(producer.inputs) > 3 and producer.inputs[3] is not None:
        axes = constant_tensor(producer.inputs[3])
        whole = axes is not None and not {-1, rank - 1} & set(axes.numpy().reshape(-1).tolist())
        return source if whole else None
    return None


def _is_own(value: ir.Value, reader: ir.Node | None) -> bool:
    if not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return False
    return reader is None or readers(value) == [reader]


def _centre_value(graph: ir.Graph, stream: Stream, value: ir.Value) -> None:
    """Takes the mean off a value where the stream reads it."""
    tape = ir.tape.Tape()
    mean = reduce_mean(tape, graph, value)
    centred = tape.op("Sub", [value, mean])
    centred.type, centred.shape = value.type, value.shape
    nodes = [(node, index) for node, index in value.uses() if stream.reads(node)]
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], tape.nodes)
    else:
        producer.append(tape.nodes)
    for node, index in nodes:
        node.replace_input_with(index, centred)
