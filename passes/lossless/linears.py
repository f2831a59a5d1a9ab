"""`y = x Wᵀ + b` as the exact rewrites see it: one node, its own weight, and the Add behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constants import ConstantPath, trace
from ..edits import edit, only_reader, private, readers
from ..uses import Match, float_attribute, match_use

Matrix = NDArray[np.float64]

_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""Half types would be rounded a second time."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A MatMul or Gemm with a constant weight.

    Attributes:
        node: the MatMul or Gemm.
        x: what it multiplies.
        path: from the constant to the node.
        turned: whether the constant is stored as `[in_features, out_features]`.
        out_features, in_features: of W.
        adder: the node that adds the bias, which is `node` itself for a Gemm; None without bias.
        bias: the vector it adds; None without bias.
    """

    node: ir.Node
    x: ir.Value
    path: ConstantPath
    turned: bool
    out_features: int
    in_features: int
    adder: ir.Node | None = None
    bias: ConstantPath | None = None

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.path.name

    @property
    def output(self) -> ir.Value:
        """`y`, with its bias."""
        return (self.adder or self.node).outputs[0]

    def weight(self) -> Matrix:
        """W, `[out_features, in_features]`, read now."""
        stored = np.asarray(self.path.tensor.numpy(), np.float64)
        return stored.T if self.turned else stored

    def bias_vector(self) -> Matrix:
        """b, `[out_features]`, zeros without bias."""
        if self.bias is None:
            return np.zeros(self.out_features)
        return np.asarray(self.bias.read(), np.float64)

    def obstacle(self) -> str:
        """Why the weight cannot be edited; empty if it can."""
        others = [reader for reader in readers(self.path.value) if reader is not self.node]
        if others:
            return f"the weight {self.name} is read elsewhere too"
        return ""

    def edit_weight(self, change: Callable[[Matrix], Matrix]) -> None:
        """`W ← change(W)`, computed when it is read; name, shape and type stay."""
        turned = self.turned

        def stored(array: Matrix) -> Matrix:
            return change(array.T).T if turned else change(array)

        edit(self.path.value, stored)

    def edit_bias(self, change: Callable[[Matrix], Matrix]) -> None:
        """`b ← change(b)` for a linear with bias; a vector that others read is copied first."""
        if self.bias is None or self.adder is None:
            raise ValueError(f"{self.name}: it has no bias to edit")
        index = self.adder.inputs.index(self.bias.value)
        edit(private(self.adder, index), change)


def linear_at(node: ir.Node, static: set[ir.Value]) -> Linear | None:
    """The linear that `node` computes; None if it is none of float32 or float64."""
    match = match_use(node, static)
    if not isinstance(match, Match) or match.form not in ("matmul", "gemm") or node.domain:
        return None
    path = match.path
    if not path.value.is_initializer() or any(dtype not in _EXACT for dtype in path.dtypes):
        return None
    if len(set(path.dtypes)) > 1 or len(path.tensor.shape) != 2:
        return None
    x = node.inputs[1 - match.weight_input]
    if x is None or match.weight_input != 1 or match.feature_axis == 0:
        return None
    rows, columns = path.shape
    out_features, in_features = (columns, rows) if match.transposed else (rows, columns)
    turned = match.transposed != (path.permutation == (1, 0))
    plain = Linear(node, x, path, turned, out_features, in_features)
    return _gemm_bias(plain) if match.form == "gemm" else _added_bias(plain)


def linears(graph: ir.Graph, static: set[ir.Value]) -> list[Linear]:
    """Every linear of a graph, in order."""
    found = (linear_at(node, static) for node in graph)
    return [linear for linear in found if linear is not None]


def _gemm_bias(linear: Linear) -> Linear | None:
    node = linear.node
    if float_attribute(node, "alpha") != 1:
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return linear
    vector = _vector(node.inputs[2], linear.out_features)
    if vector is None or float_attribute(node, "beta") != 1:
        return None
    return replace(linear, adder=node, bias=vector)


def _added_bias(linear: Linear) -> Linear:
    adder = only_reader(linear.node.outputs[0])
    if adder is None or (adder.domain, adder.op_type) != ("", "Add"):
        return linear
    for value in adder.inputs:
        vector = _vector(value, linear.out_features)
        if vector is not None:
            return replace(linear, adder=adder, bias=vector)
    return linear


def _vector(value: ir.Value | None, size: int) -> ConstantPath | None:
    """A float initializer of one axis that the node reads as it is stored."""
    path = trace(value)
    if path is None or path.nodes or path.value.is_graph_input() or not path.value.is_initializer():
        return None
    return path if path.shape == (size,) and path.tensor.dtype in _EXACT else None
