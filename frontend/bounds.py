"""What inputs are allowed to be: indices that a table holds, lengths that the capture stated."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import onnx_ir as ir

from ..passes.constants import trace

DIM_BOUNDS = "undense.dim_bounds"
"""The key in `model.metadata_props`: JSON `{"seq": [2, 512]}`, null for a side that is open."""

# Operators that hand indices on without changing their values.
_TRANSPARENT = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze")


def index_bounds(model: ir.Model) -> dict[str, tuple[int, int]]:
    """`{input: (0, D − 1)}` for inputs that index an axis of length D of a constant.

    An input counts when it reaches the indices of a `Gather` from a constant through Cast,
    Identity, Reshape, Unsqueeze and Squeeze alone; of several tables the shortest decides. Ask
    before the model is rewritten: a packed embedding is no Gather any more.
    """
    bounds: dict[str, tuple[int, int]] = {}
    for node in model.graph.all_nodes():
        if node.op_type != "Gather" or node.domain != "":
            continue
        data, indices = node.inputs[0], _origin(node.inputs[1])
        table = trace(data)
        if table is None or indices is None or not indices.is_graph_input():
            continue
        last = table.shape[node.attributes.get_int("axis", 0)] - 1
        name = str(indices.name)
        bounds[name] = (0, min(last, bounds.get(name, (0, last))[1]))
    return bounds


def _origin(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _TRANSPARENT or node.domain != "":
            return None
        value = node.inputs[0]
    return value


def dimension_bounds(model: ir.Model) -> dict[str, tuple[int, int]]:
    """`{symbol: (low, high)}`, both included, of the bounds that the capture recorded."""
    recorded = json.loads(model.metadata_props.get(DIM_BOUNDS, "{}"))
    return {
        name: (0 if low is None else low, sys.maxsize if high is None else high)
        for name, (low, high) in recorded.items()
    }


def dim_size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    """The length of a dimension, or of an expression such as `past + seq`, given its symbols."""
    if isinstance(dim, int):
        return dim
    if dim.value is None or dim.value in sizes:
        return sizes.get(str(dim.value))
    try:
        found = dim.evaluate(dict(sizes))
    except ValueError:  # a name of the exporter's that is no expression, as in `unk__3/x`
        return None
    return found if isinstance(found, int) else None
