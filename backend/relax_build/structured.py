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
    x = node[0] if structured.gathers else builder.multiplied(node[0])
    dtype = "float32" if structured.gathers else x.dtype
    kernel = kernel_for(structured.structure, dtype)
    packed = builder.packed.get(structured.site)
    if packed is None:
        arrays = kernel.pack(structured.structure, structured.factors())
        packed = {
            suffix: builder.stored(structured.site, suffix, *_kept(array)).expr
            for suffix, array in arrays.items()
        }
        builder.packed[structured.site] = packed
    shapes = {suffix: _shape(expr) for suffix, expr in packed.items()}
    features = (structured.out_features, structured.in_features)
    structure = structured.structure
    if structured.gathers:
        return builder.steps(
            lambda: [kernel.gather(structure, *features, shapes, x.dtype)], x, packed, features=0
        )
    product = builder.steps(lambda: kernel.steps(structure, *features, shapes), x, packed)
    return builder.cast(product, node[0].dtype)


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(length) for length in expr.ty.shape)


def _kept(array: NDArray[Any]) -> tuple[tuple[int, ...], str, Make]:
    return array.shape, str(array.dtype), lambda: array
