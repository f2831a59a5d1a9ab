"""`v -> Cast(v)`, once for each value that is read in another floating type than it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import onnx_ir as ir

from .half_constants import HalfConstants, finite_range

_FLOAT = ir.DataType.FLOAT


class Kind(Enum):
    """What a floating value is computed in, and what it makes of those that meet it."""

    FREE = "float32, of integers and small constants alone"
    HALF = "half"
    ROUNDED = "float32 that readers take as half, but for those that sum"
    WIDE = "float32: a sum, root or exponential, which draws what it meets to float32"


MOVES = frozenset(
    [
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    ]
)
"""Operators that hand entries on as they are."""

_BOUNDED = frozenset(["Cos", "Sin", "Sigmoid", "Softmax", "Tanh"])
"""Operators whose results lie between −1 and 1, so that no type is too narrow for them."""


class Casts:
    """The Casts that a conversion puts into a graph."""

    def __init__(self, constants: HalfConstants, kinds: Mapping[ir.Value, Kind]) -> None:
        self._graph, self._dtype = constants.graph, constants.dtype
        self._constants, self._kinds = constants, kinds
        self._narrowed: dict[ir.Value, ir.Value] = {}
        self._widened: dict[ir.Value, ir.Value] = {}

    def wide(self, value: ir.Value) -> ir.Value:
        """The value in float32."""
        if value.dtype != self._dtype:
            return value
        if value not in self._widened:
            self._widened[value] = self.inserted(value, "Cast", _FLOAT, [value], to=_FLOAT)
        return self._widened[value]

    def narrow(self, value: ir.Value) -> ir.Value:
        """The value in half: what it was cast from, or a Cast."""
        if value.dtype == self._dtype:
            return value
        if value not in self._narrowed:
            self._narrowed[value] = self._rounded(value)
        return self._narrowed[value]

    def _rounded(self, value: ir.Value) -> ir.Value:
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
        if source is not None and source.dtype == self._dtype:
            return source
        if source is not None and source.dtype == ir.DataType.BOOL:
            return self.inserted(value, "Cast", self._dtype, [source], to=self._dtype)
        if self._kinds[value] is Kind.FREE and not _bounded(value):
            limits = [self._constants.limit(number) for number in finite_range(self._dtype)]
            value = self.inserted(value, "Clip", _FLOAT, [value, *limits])
        return self.inserted(value, "Cast", self._dtype, [value], to=self._dtype)

    def inserted(
        self,
        after: ir.Value,
        op_type: str,
        dtype: ir.DataType,
        inputs: Sequence[ir.Value],
        **attributes: ir.DataType,
    ) -> ir.Value:
        """One entry-wise node behind the one that computes `after`, with its type and shape."""
        producer = after.producer()
        metadata = {} if producer is None else dict(producer.metadata_props)
        node = ir.node(
            op_type,
            inputs,
            {name: int(value) for name, value in attributes.items()},
            name=self._constants.free_name(f"{after.name}/{op_type}_{dtype.numpy().name}"),
            metadata_props=metadata,
        )
        (result,) = node.outputs
        result.name, result.dtype, result.shape = node.name, dtype, after.shape
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return result


def is_operator(node: ir.Node, operators: frozenset[str]) -> bool:
    """Whether a node is one of ONNX's own operators of these names."""
    return not node.domain and node.op_type in operators


def _bounded(value: ir.Value | None) -> bool:
    """Whether a value lies between −1 and 1 by the operator that computes it."""
    while value is not None and (node := value.producer()) is not None:
        if is_operator(node, _BOUNDED):
            return True
        others = [other for other in node.inputs[1:] if other is not None]
        if not is_operator(node, MOVES) or any(other.dtype == _FLOAT for other in others):
            return False
        value = node.inputs[0]
    return False
