"""`(s · x + t) Wᵀ + b -> x (W diag(s))ᵀ + (b + W t)`: also weights and biases of norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constants import static_values, trace
from ..edits import bypass, computed, initializer
from .journal import Journal, counted
from .linears import Linear, linear_at
from .vectors import Array, constant_operand, constant_vector

_NORMS = ("LayerNormalization", "RMSNormalization")
_ACTIVATIONS = ("Erf", "Tanh", "Sigmoid")


class AbsorbInputScales(ir.passes.InPlacePass):
    """Multiplies columns of weights by constants that come before, if only linears read these.

    It makes rotations of what the linears read possible. It is not free for codes: columns of one
    group, which share a scale, then differ by what the norm has learned to tell apart.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites `model` in place."""
        static = static_values(model.graph)
        changed = 0
        # Backwards, so that of `s · x + t` the addend goes first and the product is next to it.
        for node in reversed(list(model.graph)):
            if node.domain == "" and node.op_type in _NORMS:
                changed += self._norm(node, static)
            else:
                changed += self._entry_wise(node, static)
        if changed:
            self.journal.done.append(
                "absorbed scales of inputs and weights of norms: "
                f"{counted(changed, 'vector')} into the linears behind them"
            )
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(changed))

    def _entry_wise(self, node: ir.Node, static: set[ir.Value]) -> int:
        """Absorbs an Add, Mul or Div with a constant; 1 if it did."""
        found = constant_operand(node)
        if found is None:
            return 0
        x, vector = found
        consumers = self._consumers(node.outputs[0], static, shift=node.op_type == "Add")
        if not consumers:
            return 0
        if _in_activation(x):
            self.journal.refuse(
                node.outputs[0].name, "constant not absorbed: it is part of an activation"
            )
            return 0
        (_shift if node.op_type == "Add" else _scale)(consumers, vector)
        bypass(node, x)
        return 1

    def _norm(self, node: ir.Node, static: set[ir.Value]) -> int:
        """Absorbs what the last inputs of a norm hold; the number of vectors that it absorbed."""
        inputs = [value for value in node.inputs[1:] if value is not None]
        if any(value.uses() for value in node.outputs[1:]):
            return 0
        consumers = self._consumers(node.outputs[0], static, shift=len(inputs) > 1)
        if not consumers:
            return 0
        vectors = []
        for value in inputs:
            vector = _norm_vector(value)
            if isinstance(vector, str):
                self._refuse(node.outputs[0], vector)
                return 0
            vectors.append(vector)
        (scale, *bias), done = vectors, 0
        if bias:
            _shift(consumers, bias[0])
            node.resize_inputs(2)
            done += 1
        if (scale != 1).any():
            _scale(consumers, scale)
            dtype = consumers[0].path.tensor.dtype
            ones = computed(lambda: np.ones(scale.size), scale.shape, dtype, None)
            graph = node.graph
            if isinstance(graph, ir.Graph):
                node.replace_input_with(1, initializer(graph, f"{inputs[0].name}.absorbed", ones))
            done += 1
        return done

    def _consumers(self, value: ir.Value, static: set[ir.Value], *, shift: bool) -> list[Linear]:
        """The linears that read a value, if all that reads it are linears that can be edited."""
        found = [linear_at(node, static) for node, _ in value.uses()]
        consumers = [linear for linear in found if linear is not None and linear.x is value]
        if not consumers:
            return []
        reason = ""
        if value.is_graph_output():
            reason = "the model returns it"
        elif len(consumers) < len(found):
            others = {node.op_type for node, _ in value.uses()} - {"MatMul", "Gemm"}
            reason = f"{' and '.join(sorted(others)) or 'a product'} reads it too"
        elif shift and any(linear.bias is None for linear in consumers):
            reason = "a linear behind it has no bias"
        else:
            reason = next(filter(None, (linear.obstacle() for linear in consumers)), "")
        if reason:
            self._refuse(value, reason)
            return []
        return consumers

    def _refuse(self, value: ir.Value, reason: str) -> None:
        self.journal.refuse(value.name, f"constant before linears not absorbed: {reason}")


def _norm_vector(value: ir.Value) -> Array | str:
    """What a norm multiplies by or adds, or why that cannot be absorbed."""
    path = trace(value)
    if path is not None and path.value.is_graph_input():
        return f"{path.name} is also an input of the model, which callers may override"
    vector = constant_vector(value)
    if vector is None:
        return f"{value.name} is no vector of finite constants"
    return vector.reshape(-1)


def _scale(consumers: Sequence[Linear], vector: Array) -> None:
    for linear in consumers:
        linear.edit_weight(lambda weight: weight * vector)


def _shift(consumers: Sequence[Linear], vector: Array) -> None:
    for linear in consumers:
        added = linear.weight() @ np.broadcast_to(vector, (linear.in_features,))
        linear.edit_bias(lambda bias, added=added: bias + added)  # type: ignore[misc]


def _in_activation(value: ir.Value) -> bool:
    """Whether a function such as erf stands just before: engines know a GELU by its constants."""
    pending = [(value, 0)]
    while pending:
        current, steps = pending.pop()
        producer = current.producer()
        if producer is None or steps > 3:
            continue
        if producer.op_type in _ACTIVATIONS:
            return True
        if producer.op_type in ("Add", "Mul", "Div"):
            pending += [(item, steps + 1) for item in producer.inputs if item is not None]
    return False
