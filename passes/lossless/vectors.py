"""`x · s`, `x / s` and `x + s` with a constant s that holds one number a feature."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constants import FLOATS, trace

Array = NDArray[np.float64]


def constant_operand(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """What an Add, Mul or Div takes beside a constant vector, and that vector.

    A Div is the product with the inverse. The vector has one entry, or one for each feature of the
    last axis; None where the node is no such operator or has no such constant.
    """
    if node.domain or node.op_type not in ("Add", "Mul", "Div"):
        return None
    first, second = node.inputs
    pairs = [(first, second)] if node.op_type == "Div" else [(first, second), (second, first)]
    for x, other in pairs:
        vector = constant_vector(other)
        if x is None or vector is None or not _last_axis_alone(x, vector):
            continue
        if node.op_type == "Div":
            return None if (vector == 0).any() else (x, 1 / vector.reshape(-1))
        return x, vector.reshape(-1)
    return None


def constant_vector(value: ir.Value | None) -> Array | None:
    """A float constant that no caller can override, all its axes but the last of length one."""
    path = trace(value)
    if path is None or path.tensor.dtype not in FLOATS or path.value.is_graph_input():
        return None
    *leading, _ = (1, *path.shape)
    if any(size != 1 for size in leading):
        return None
    vector = np.asarray(path.read(), np.float64)
    return vector if np.isfinite(vector).all() else None


def _last_axis_alone(x: ir.Value, vector: Array) -> bool:
    """Whether the product has the rank and the last axis of x."""
    if x.shape is None or trace(x) is not None:
        return False
    features = x.shape[-1] if len(x.shape) else 1
    return vector.ndim <= len(x.shape) and vector.size in (1, features)
