"""Nodes of the domain `undense`: packed tensors become parameters, kernels lower the product."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ...passes.nodes import read_node
from ..kernels import kernel_for
from .builder import Builder
from .node import Node
from .parameters import Make
from .values import Value


def lower_structured(builder: Builder, node: Node) -> Value:
    """`x Ŵᵀ`, or rows of Ŵ for a gather, by the kernel of the structure.

    The tensors of a site are packed at its first use and shared by all others.
    """
    structured = read_node(node.node)
    kernel = kernel_for(structured.structure)
    packed = builder.packed.get(structured.site)
    if packed is None:
        arrays = kernel.pack(structured.structure, structured.factors())
        packed = {
            suffix: builder.stored(f"{structured.site}.{suffix}", *_kept(array)).expr
            for suffix, array in arrays.items()
        }
        builder.packed[structured.site] = packed
    x = node[0]
    operand = x if structured.gathers else builder.cast(x, "float32")
    lower = kernel.lower_gather if structured.gathers else kernel.lower
    result = builder.emit(
        lower(
            builder.block,
            structured.structure,
            builder.tensor(operand),
            packed,
            structured.out_features,
            structured.in_features,
        )
    )
    return result if structured.gathers else builder.cast(result, x.dtype)


def _kept(array: NDArray[Any]) -> tuple[tuple[int, ...], str, Make]:
    return array.shape, str(array.dtype), lambda: array
