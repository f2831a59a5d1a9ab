"""Clears up an exported graph: constants folded, unused and doubled parts gone, weights intact.

onnxscript's `optimize_ir` does the same and more, but its pattern rules search the whole graph for
each node: half a minute for a 30-layer model, and five nodes fewer at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer


def tidy(model: ir.Model) -> None:
    """Folds and prunes in place, all but `Transpose(weight)`: see `fold_transposes`."""
    common.InlinePass()(model)
    for _ in range(2):  # what the first round folds shows constants to the second
        optimizer.fold_constants_ir(model, onnx_shape_inference=True, should_fold=_should_fold)
        common.RemoveUnusedNodesPass()(model)
    for clean in (
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        clean(model)


def _should_fold(node: ir.Node) -> bool | None:
    """None stands for the optimiser's own rules."""
    return False if node.op_type == "Transpose" and node.domain == "" else None


def fold_transposes(model: ir.Model) -> None:
    """`Transpose(weight)` becomes a weight of the same name, transposed whenever it is read.

    A weight with other uses (an embedding tied to the head) stays one initializer behind its
    transpose, since folding would store it twice.
    """
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.domain != "":
            continue
        weight, result = node.inputs[0], node.outputs[0]
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        if len(weight.uses()) != 1 or weight.is_graph_output() or result.is_graph_output():
            continue
        rank = len(weight.const_value.shape)
        perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
        tensor = _transposed(weight.const_value, perm)
        ir.convenience.replace_all_uses_with(result, weight)
        model.graph.remove(node, safe=True)
        weight.const_value, weight.shape = tensor, tensor.shape


def _transposed(tensor: ir.TensorProtocol, perm: Sequence[int]) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().transpose(perm))
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy()[axis] for axis in perm)
    return ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=tensor.name)
