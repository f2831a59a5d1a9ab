"""MatMul, Gemm and Einsum: products with weights packed for the kernel, and batched products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi

from ..kernels.cuda.cublas import cublas_step
from ..kernels.cuda.dtypes import activation
from ..kernels.cuda.structures import dense_step as cuda_dense_step
from ..kernels.cuda.weights import Dense
from ..kernels.dense import dense_step
from ..kernels.gpu import on_gpu, uses_cublas
from .builder import OUT_ELEMENTWISE_FUSABLE, Builder
from .dimensions import extent
from .node import Lowering, Node
from .values import HALVES, Dim, Value, like

ROWS, COLUMNS = 4, 16
"""Tile of the product kernel: 4×16 float32 sums fill half the registers of AVX2."""

PRODUCT = "product"
"""Name of the block that sums the tiles, by which its schedule knows it."""

PARTIAL = "partial"
"""Name of the block that sums a stretch of the depth, where there is one."""

_STRETCH = 64
"""Products that are added one after the other at most: rounding grows with the length of a sum, so
sums of sums are several times as exact at a cost of one addition in 64."""


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
    if second.static and second.rank == 2 and _has_linear(second.dtype):
        return linear(builder, first, second)
    return batched(builder, first, second)


def _has_linear(dtype: str) -> bool:
    """Whether there are kernels for constant weights of a type; those of CPUs lack bfloat16."""
    return dtype.startswith("float") or (on_gpu() and activation(dtype) is not None)


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
    """`x @ W`, x `[..., in]` of run time, W `[in, out]` constant and stored in panels."""
    builder.require_equal(x.shape[-1], weight.shape[0])
    if on_gpu() and activation(weight.dtype) is not None:
        return _linear_on_gpu(builder, x, weight)
    panels = stored_panels(builder, weight)
    if weight.dtype not in ("float32", "float16"):
        return _product(builder, "linear", x, panels, weight.shape[1])
    inputs, outputs = weight.shape
    product = builder.steps(
        lambda: [dense_step(outputs, inputs, weight.dtype)],
        builder.cast(x, "float32"),
        {"weight": panels.expr},
    )
    return builder.cast(product, x.dtype)


def _linear_on_gpu(builder: Builder, x: Value, weight: Value) -> Value:
    fragments = stored_fragments(builder, weight)
    inputs, outputs = weight.shape
    known_type = activation(weight.dtype)
    if uses_cublas() and known_type is not None:
        builder.libraries.add("cublas")
        return builder.steps(
            lambda: [cublas_step(outputs, inputs, known_type)],
            builder.cast(x, weight.dtype),
            {"weight": fragments.expr, "plain": _stored_by_rows(builder, weight).expr},
        )
    return builder.steps(
        lambda: [cuda_dense_step(outputs, inputs, weight.dtype)],
        builder.cast(x, weight.dtype),
        {"weight": fragments.expr},
    )


def stored_fragments(builder: Builder, weight: Value) -> Value:
    """The parameter that holds a constant `[in, out]` in the order of tensor cores' fragments."""
    array, known_type = weight.host, activation(weight.dtype)
    assert array is not None
    assert known_type is not None
    dense = Dense(known_type)
    (argument,) = dense.arguments(1, int(array.shape[1]), int(array.shape[0]))
    return builder.stored(
        weight.name, "fragments", argument.shape, weight.dtype, lambda: dense.pack(array.T[None])
    )


def _stored_by_rows(builder: Builder, weight: Value) -> Value:
    """The parameter that holds a constant `[in, out]` as `[out, in]`."""
    array = weight.host
    assert array is not None
    shape = (int(array.shape[1]), int(array.shape[0]))
    return builder.stored(weight.name, "by_rows", shape, weight.dtype, lambda: array.T)


def stored_panels(builder: Builder, weight: Value) -> Value:
    """The parameter that holds a constant `[in, out]` in panels."""
    array = weight.host
    assert array is not None
    shape = (-(-array.shape[1] // COLUMNS), array.shape[0], COLUMNS)
    return builder.stored(weight.name, "packed", shape, weight.dtype, lambda: pack_columns(array))


def batched(builder: Builder, first: Value, second: Value, *, group: int = 1) -> Value:
    """`a @ b` over broadcast leading axes.

    With `group` the axis before the matrices of b has `group` times fewer entries than that of a:
    heads of grouped-query attention share them.
    """
    builder.require_equal(first.shape[-1], second.shape[-2])
    if on_gpu():
        return _plain_product(builder, first, second, group)
    panels = _panels(builder, second)
    return _product(builder, "matmul", first, panels, second.shape[-1], group)


def _plain_product(builder: Builder, first: Value, second: Value, group: int) -> Value:
    """Each entry a sum in float32."""
    lead_first, lead_second = list(first.shape[:-2]), list(second.shape[:-2])
    if group > 1:
        lead_second[-1] = lead_first[-1]
    lead = builder.broadcast(lead_first, lead_second)
    read_first = builder.reading(lead_first, lead)
    read_second = builder.reading(lead_second, lead)
    wide = "float32" if first.dtype in HALVES else first.dtype

    def compute(a: Any, b: Any, lead: list[Any]) -> Any:
        k = te.reduce_axis((0, a.shape[-1]), "k")

        def product(*index: Any) -> Any:
            *batch, row, column = index
            batch_a = read_first(batch, a.shape[:-2])
            batch_b = read_second(batch, b.shape[:-2])
            if group > 1:
                batch_b[-1] = tirx.floordiv(batch[-1], group)
            return te.sum(
                a(*batch_a, row, k).astype(wide) * b(*batch_b, k, column).astype(wide), axis=k
            )

        shape = [*[extent(dim) for dim in lead], a.shape[-2], b.shape[-1]]
        sums = te.compute(shape, product, name=PRODUCT)
        if wide == first.dtype:
            return sums
        return te.compute(shape, lambda *index: sums(*index).astype(first.dtype), name="narrowed")

    return builder.te("matmul", compute, first, second, list(lead))


def _panels(builder: Builder, value: Value) -> Value:
    """`[..., in, out]` -> `[..., ceil(out/16), in, 16]`, packed at run time."""

    def compute(x: Any) -> Any:
        *lead, depth, columns = x.shape
        count = tirx.floordiv(columns - 1, COLUMNS) + 1

        def entry(*index: Any) -> Any:
            *batch, panel, row, lane = index
            column = panel * COLUMNS + lane
            inside = column < columns
            return tirx.if_then_else(inside, x(*batch, row, column), like(0, x))

        return te.compute([*lead, count, depth, extent(COLUMNS)], entry, name="panels")

    return builder.te("panels", compute, value)


def _product(
    builder: Builder, name: str, first: Value, panels: Value, columns: Dim, group: int = 1
) -> Value:
    """`a @ b` with b in panels, in tiles of 4 rows and 16 columns.

    Rows beyond the end repeat the last one, so that the inner loop needs no condition.
    """
    lead_first, lead_second = list(first.shape[:-2]), list(panels.shape[:-3])
    if group > 1:
        lead_second[-1] = lead_first[-1]
    lead = builder.broadcast(lead_first, lead_second)
    read_first = builder.reading(lead_first, lead)
    read_second = builder.reading(lead_second, lead)

    def compute(a: Any, b: Any, lead: list[Any], columns: Any) -> Any:
        rows, depth = a.shape[-2:]
        stretch = _stretch(depth)

        def products(index: tuple[Any, ...], start: Any, k: Any) -> Any:
            *batch, row_tile, panel, row, lane = index
            batch_a = read_first(batch, a.shape[:-2])
            batch_b = read_second(batch, b.shape[:-3])
            if group > 1:
                batch_b[-1] = tirx.floordiv(batch[-1], group)
            source = te.min(row_tile * ROWS + row, rows - 1)
            return a(*batch_a, source, start + k) * b(*batch_b, panel, start + k, lane)

        leading = [extent(dim) for dim in lead]
        tiles = tirx.floordiv(rows - 1, ROWS) + 1
        shape = [*leading, tiles, b.shape[-3], extent(ROWS), extent(COLUMNS)]
        k = te.reduce_axis((0, stretch), "k")
        if stretch is depth:
            sums = te.compute(
                shape, lambda *index: te.sum(products(index, 0, k), axis=k), name=PRODUCT
            )
        else:
            partial = te.compute(
                [depth // stretch, *shape],
                lambda s, *index: te.sum(products(index, s * stretch, k), axis=k),
                name=PARTIAL,
            )
            s = te.reduce_axis((0, depth // stretch), "s")
            sums = te.compute(
                shape, lambda *index: te.sum(partial(s, *index), axis=s), name=PRODUCT
            )

        def read(*index: Any) -> Any:
            *batch, row, column = index
            tile = (tirx.floordiv(row, ROWS), tirx.floordiv(column, COLUMNS))
            return sums(*batch, *tile, tirx.floormod(row, ROWS), tirx.floormod(column, COLUMNS))

        return te.compute([*leading, rows, extent(columns)], read, name=name)

    attributes = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
    return builder.te(name, compute, first, panels, list(lead), columns, attributes=attributes)


def _stretch(depth: Any) -> Any:
    """The depth, or its largest divisor up to the stretch if that is worth another loop."""
    if not isinstance(depth, tirx.IntImm) or int(depth) <= _STRETCH:
        return depth
    divisor = max(length for length in range(1, _STRETCH + 1) if int(depth) % length == 0)
    return extent(divisor) if divisor >= _STRETCH // 4 else depth


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
