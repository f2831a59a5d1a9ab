"""`(x Wᵀ + b) · s -> x (diag(s) W)ᵀ + s b`: constant scales of outputs, such as LayerScale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constants import static_values
from ..edits import bypass, only_reader
from .journal import Journal, counted
from .linears import Linear, linear_at, linears
from .vectors import Array, constant_operand


class AbsorbScales(ir.passes.InPlacePass):
    """Multiplies rows of weights, and biases, by the constants that follow them.

    Codes lose nothing by it: the scale of a row goes into the scales of its groups. Names of
    weights stay.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        static = static_values(model.graph)
        absorbed: list[str] = []
        for found in linears(model.graph, static):
            linear: Linear | None = found
            while linear is not None and self._absorbed(linear):
                absorbed.append(linear.name)
                linear = linear_at(linear.node, static)
        if absorbed:
            self.journal.done.append(
                f"absorbed scales of outputs: {counted(len(absorbed), 'product')} with constants, "
                f"into {', '.join(dict.fromkeys(absorbed))}"
            )
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(absorbed))

    def _absorbed(self, linear: Linear) -> bool:
        """Absorbs the scale that follows a linear, if there is one."""
        product = only_reader(linear.output)
        found = None if product is None or product.op_type == "Add" else constant_operand(product)
        if product is None or found is None or found[0] is not linear.output:
            return False
        reason = linear.obstacle()
        if reason:
            self.journal.refuse(linear.name, f"scale of its output not absorbed: {reason}")
            return False
        scale = np.broadcast_to(found[1], (linear.out_features,))
        _multiply_rows(linear, scale)
        bypass(product, linear.output)
        return True


def _multiply_rows(linear: Linear, scale: Array) -> None:
    linear.edit_weight(lambda weight: scale[:, None] * weight)
    if linear.bias is not None:
        linear.edit_bias(lambda bias: scale * bias)
