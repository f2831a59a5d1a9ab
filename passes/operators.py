"""How many nodes of each operator a graph has."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Nodes by operator, those of inner graphs too; `domain.Operator` for other domains.

    A node that calls a function counts once, as it stands in the graph.
    """
    found = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    )
    return dict(sorted(found.items()))
