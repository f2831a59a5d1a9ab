"""MatMul, Gemm and Einsum: products with weights packed for the kernel, and batched products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi

from .builder import OUT_ELEMENTWISE_FUSABLE, Builder, extent
from .node import Lowering, Node
from .values import Value, like

ROWS, COLUMNS = 4, 16
"""Tile of the product kernel: 4×16 float32 sums fill the registers of AVX2."""


def pack_columns(weight: NDArray[Any]) -> NDArray[Any]:
    """`[in, out]` -> `[ceil(out/16), in, 16]`: panels of 16 columns, the last filled with zeros."""
    rows, columns = weight.shape
    panels = -(-columns // COLUMNS)
    if columns % COLUMNS:
        weight = np.pad(weight, ((0, 0), (0, panels * COLUMNS - columns)))
    return np.ascontiguousarray(weight.reshape(rows, panels, COLUMNS).transpose(1, 0, 2))


def matmul(builder: Builder, first: Value, second: Value) -> Value:
    """Numpy's `matmul` of two values of one dtype."""
    if first.rank == 1 or second.rank == 1:
        return _with_vector(builder, first, second)
    if second.static and second.rank == 2 and second.dtype.startswith("float"):
        return linear(builder, first, second)
    return batched(builder, first, second)


def _with_vector(builder: Builder, first: Value, second: Value) -> Value:
    left = builder.reshape(first, [1, *first.shape]) if first.rank == 1 else first
    right = builder.reshape(second, [*second.shape, 1]) if second.rank == 1 else second
    product = matmul(builder, left, right)
    shape = list(product.shape)
    if second.rank == 1:
        del shape[-1]
    if first.rank == 1:
        del shape[-1 if second.rank == 1 else -2]
    return builder.reshape(product, shape)


def linear(builder: Builder, x: Value, weight: Value) -> Value:
    """`x @ W`, x `[..., in]` of run time, W `[in, out]` constant and stored in packed panels."""
    assert weight.host is not None
    rows_in, columns = weight.shape
    builder.require_equal(x.shape[-1], rows_in)
    panel = builder.stored(f"{weight.name}.packed", weight.host, pack_columns)

    def compute(x: Any, panels: Any) -> Any:
        *batch, rows, depth = x.shape
        k = te.reduce_axis((0, depth), "k")
        tiles = tirx.floordiv(rows + (ROWS - 1), extent(ROWS))

        def accumulate(*index: Any) -> Any:
            *lead, row_tile, panel, row, column = index
            # Rows beyond the end repeat the last one, so that the inner loop needs no condition.
            source = te.min(row_tile * ROWS + row, rows - 1)
            return te.sum(x(*lead, source, k) * panels(panel, k, column), axis=k)

        shape = [*batch, tiles, panels.shape[0], extent(ROWS), extent(COLUMNS)]
        sums = te.compute(shape, accumulate, name="product")

        def read(*index: Any) -> Any:
            *lead, row, column = index
            return sums(
                *lead,
                tirx.floordiv(row, ROWS),
                tirx.floordiv(column, COLUMNS),
                tirx.floormod(row, ROWS),
                tirx.floormod(column, COLUMNS),
            )

        return te.compute([*batch, rows, extent(int(columns))], read, name="linear")

    attributes = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
    return builder.te("linear", compute, x, panel, attributes=attributes)


def batched(builder: Builder, first: Value, second: Value, *, group: int = 1) -> Value:
    """`a @ b` over broadcast leading axes.

    With `group` the axis before the matrices of b has `group` times fewer entries than that of a:
    heads of grouped-query attention share them.
    """
    builder.require_equal(first.shape[-1], second.shape[-2])
    lead_first, lead_second = list(first.shape[:-2]), list(second.shape[:-2])
    if group > 1:
        lead_second[-1] = lead_first[-1]
    lead = builder.broadcast(lead_first, lead_second)
    read_first = builder.reading(lead_first, lead)
    read_second = builder.reading(lead_second, lead)

    def compute(a: Any, b: Any, lead: list[Any]) -> Any:
        k = te.reduce_axis((0, a.shape[-1]), "k")

        def entry(*index: Any) -> Any:
            *batch, row, column = index
            batch_a = read_first(batch, a.shape[:-2])
            batch_b = read_second(batch, b.shape[:-2])
            if group > 1:
                batch_b[-1] = tirx.floordiv(batch[-1], group)
            return te.sum(a(*batch_a, row, k) * b(*batch_b, k, column), axis=k)

        shape = [*(extent(dim) for dim in lead), a.shape[-2], b.shape[-1]]
        return te.compute(shape, entry, name="matmul")

    return builder.te("matmul", compute, first, second, list(lead))


def _matmul(builder: Builder, node: Node) -> Value:
    return matmul(builder, node[0], node[1])


def _gemm(builder: Builder, node: Node) -> Value:
    first, second = node[0], node[1]
    if node.attribute("transA", 0):
        first = builder.transpose(first, [1, 0])
    if node.attribute("transB", 0):
        second = builder.transpose(second, [1, 0])
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    product = matmul(builder, first, second)
    if alpha != 1.0:
        product = builder.elementwise("scale", lambda x: x * like(alpha, x), product)
    bias = node.get(2)
    if bias is None or beta == 0.0:
        return product
    return builder.elementwise(
        "bias",
        lambda x, b: x + (b if beta == 1.0 else b * like(beta, b)),
        product,
        bias,
    )


def _einsum(builder: Builder, node: Node) -> Value:
    equation = str(node.attribute("equation")).replace(" ", "")
    if "..." in equation:
        raise node.refusal("an ellipsis in the equation is not covered")
    values = [value for value in node.inputs if value is not None]

    def compute(*tensors: Any) -> Any:
        return topi.einsum(equation, *tensors)

    return builder.te("einsum", compute, *values)


LOWERINGS: dict[str, Lowering] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
