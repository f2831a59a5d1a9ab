"""`(x W1ᵀ + b1) W2ᵀ + b2 -> x (W2 W1)ᵀ + (b2 + W2 b1)`, where the product is not larger."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constants import static_values
from ..edits import computed, initializer, only_reader
from .journal import Journal
from .linears import Linear, linear_at, linears


class MergeLinears(ir.passes.InPlacePass):
    """Merges two linears with nothing between them, and then again what came out.

    With W1 `[r, n]` and W2 `[m, r]` the product has `m·n` weights instead of `r·(m + n)`. It is the
    inverse of a low-rank factorisation that does not pay.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        modified = False
        static = static_values(model.graph)
        for first in linears(model.graph, static):
            merged: Linear | None = first
            while merged is not None:
                merged = self._merged(merged, static)
                modified |= merged is not None
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)

    def _merged(self, first: Linear, static: set[ir.Value]) -> Linear | None:
        """The one linear that stands for `first` and the one behind it, if they can be merged."""
        if first.node.graph is None:
            return None  # merged into one before it
        reader = only_reader(first.output)
        second = None if reader is None else linear_at(reader, static)
        if second is None or second.x is not first.output:
            return None
        reason = _obstacle(first, second)
        if reason:
            self.journal.refuse(second.name, f"not merged with {first.name}: {reason}")
            return None
        node = _merge(first, second)
        m, n, r = second.out_features, first.in_features, first.out_features
        self.journal.done.append(
            f"merged linears: {first.name} and {second.name}, {m * n} weights instead of "
            f"{r * (m + n)}"
        )
        return linear_at(node, static)


def _obstacle(first: Linear, second: Linear) -> str:
    m, n, r = second.out_features, first.in_features, first.out_features
    if m * n > r * (m + n):
        return f"the product has {m * n} weights and the two have {r * (m + n)}"
    return first.obstacle() or second.obstacle()


def _merge(first: Linear, second: Linear) -> ir.Node:
    """Puts `x Wᵀ + b` in the place of both; returns the MatMul."""
    graph = second.node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{second.name}: it is not part of a graph")
    dtype, old = second.path.tensor.dtype, second.output
    shape = first.in_features, second.out_features
    tensor = computed(lambda: (second.weight() @ first.weight()).T, shape, dtype, None)
    metadata = dict(second.node.metadata_props)
    tape = ir.tape.Tape()
    weight = initializer(graph, f"{second.name}.merged", tensor)
    new = tape.op("MatMul", [first.x, weight], metadata_props=metadata)
    new.dtype, new.shape = dtype, old.shape
    if first.bias is not None or second.bias is not None:
        vector = computed(
            lambda: second.bias_vector() + second.weight() @ first.bias_vector(),
            (second.out_features,),
            dtype,
            None,
        )
        bias = initializer(graph, f"{second.name}.merged.bias", vector)
        new = tape.op("Add", [new, bias], metadata_props=metadata)
        new.dtype, new.shape = dtype, old.shape
    # The first node may stand behind others that the second does not need: so its place is taken.
    (second.adder or second.node).prepend(tape.nodes)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    for node in dict.fromkeys([second.adder, second.node, first.adder, first.node]):
        if node is not None:
            graph.remove(node, safe=True)
    new.name, tape.nodes[0].name = name, second.node.name
    return tape.nodes[0]
