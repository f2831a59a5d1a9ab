"""`x W1ᵀ + b1, x W2ᵀ + b2 -> Split(x [W1; W2]ᵀ + [b1; b2])`: query, key and value; gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constants import static_values
from ..edits import computed, initializer
from .journal import Journal
from .linears import Linear, linears


class FuseSiblings(ir.passes.InPlacePass):
    """Multiplies a value once by the weights of all linears that read it.

    The new site is `{first}.fused`; its parts can have no schemes of their own any more.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        siblings: dict[object, list[Linear]] = {}
        for linear in linears(model.graph, static_values(model.graph)):
            siblings.setdefault((linear.x, linear.path.tensor.dtype), []).append(linear)
        modified = False
        for group in siblings.values():
            if len(group) < 2:
                continue
            reason = next(filter(None, (linear.obstacle() for linear in group)), "")
            if reason:
                self.journal.refuse(group[0].name, f"not fused with its siblings: {reason}")
                continue
            _fuse(model.graph, group)
            modified = True
            names = ", ".join(linear.name for linear in group)
            self.journal.done.append(f"fused siblings: {names} into one product")
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, group: Sequence[Linear]) -> None:
    """Puts one product and a Split in the place of the first."""
    first = group[0]
    dtype, sizes = first.path.tensor.dtype, [linear.out_features for linear in group]
    leading = None if first.output.shape is None else first.output.shape[:-1]
    shape = None if leading is None else ir.Shape([*leading, sum(sizes)])
    tape = ir.tape.Tape()
    stacked = computed(
        lambda: np.concatenate([linear.weight() for linear in group]).T,
        (first.in_features, sum(sizes)),
        dtype,
        None,
    )
    weight = initializer(graph, f"{first.name}.fused", stacked)
    new = tape.op("MatMul", [first.x, weight], metadata_props=dict(first.node.metadata_props))
    new.dtype, new.shape = dtype, shape
    if any(linear.bias is not None for linear in group):
        vectors = computed(
            lambda: np.concatenate([linear.bias_vector() for linear in group]),
            (sum(sizes),),
            dtype,
            None,
        )
        bias = initializer(graph, f"{first.name}.fused.bias", vectors)
        new = tape.op("Add", [new, bias])
        new.dtype, new.shape = dtype, shape
    outputs = _split(tape, graph, new, sizes, f"{first.name}.sizes")
    first.node.prepend(tape.nodes)
    for linear, part in zip(group, outputs, strict=True):
        old = linear.output
        part.type, part.shape, name = old.type, old.shape, old.name
        old.replace_all_uses_with(part, replace_graph_outputs=True)
        for node in dict.fromkeys([linear.adder, linear.node]):
            if node is not None:
                graph.remove(node, safe=True)
        part.name = name


def _split(
    tape: ir.tape.Tape, graph: ir.Graph, value: ir.Value, sizes: Sequence[int], name: str
) -> Sequence[ir.Value]:
    """Parts of the last axis; their sizes are an input since opset 13."""
    inputs, attributes = [value], dict[str, int | Sequence[int]](axis=-1)
    if graph.opset_imports.get("", 0) >= 13:
        inputs.append(initializer(graph, name, ir.tensor(np.array(sizes, np.int64))))
    else:
        attributes["split"] = sizes
    return tape.op_multi_out("Split", inputs, attributes=attributes, num_outputs=len(sizes))
