"""Nodes of the domain `undense`: packed tensors become parameters, kernels lower the product."""

from __future__ import annotations

from ...passes.nodes import read_node
from ..kernels import kernel_for
from .builder import Builder
from .indexing import note_index
from .node import Node
from .values import Value


def lower_structured(builder: Builder, node: Node) -> Value:
    """`x Ŵᵀ`, or rows of Ŵ for a gather, by the kernel of the structure.

    The tensors of a site are packed at its first use and shared by all others.
    """
    structured = read_node(node.node)
    kernel = kernel_for(structured.structure)
    if structured.site not in builder.sites:
        packed = kernel.pack(structured.structure, structured.factors())
        builder.sites[structured.site] = {
            suffix: builder.parameter(f"{structured.site}.{suffix}", array)
            for suffix, array in packed.items()
        }
    x = node[0]
    lower = kernel.lower_gather if structured.gathers else kernel.lower
    if structured.gathers:
        note_index(builder, x, structured.out_features)
    dtype = x.dtype
    operand = builder.tensor(x if structured.gathers else builder.cast(x, "float32"))
    expression = lower(
        builder.block,
        structured.structure,
        operand,
        builder.sites[structured.site],
        structured.out_features,
        structured.in_features,
    )
    result = builder.emit(expression)
    return result if structured.gathers else builder.cast(result, dtype)
