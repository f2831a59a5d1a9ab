"""Operators that read or write at indices: Gather, GatherElements, GatherND, Scatter*, OneHot."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx, topi

from ..kernels.cuda.dtypes import activation
from ..kernels.cuda.rows import gather_step
from ..kernels.cuda.weights import Dense
from ..kernels.gpu import on_gpu
from .builder import Builder
from .dimensions import extent
from .matmul import COLUMNS, stored_fragments, stored_panels
from .node import Lowering, Node
from .values import Value


def wrap(index: Any, dim: Any) -> Any:
    """A run-time index, counted from the front and kept inside the axis.

    ONNX forbids indices outside of it and sessions refuse those they can see; the clamp keeps all
    others from reading memory that is not theirs.
    """
    index = index.astype("int64")
    index = tirx.Select(index < 0, index + dim, index)
    return te.max(te.min(index, dim - 1), tirx.const(0, "int64"))


def _gather(builder: Builder, node: Node) -> Value:
    data, indices = node[0], node[1]
    axis = node.axis(node.attribute("axis", 0), data.rank)
    if axis == 0 and data.rank == 2 and data.name in builder.tied:
        return _gather_packed(builder, data, indices)
    if indices.host is not None and indices.host.size == 1:
        return _gather_one(builder, data, indices, axis)

    def compute(x: Any, positions: Any) -> Any:
        def entry(*index: Any) -> Any:
            before, at = index[:axis], index[axis : axis + indices.rank]
            after = index[axis + indices.rank :]
            return x(*before, wrap(positions(*at), x.shape[axis]), *after)

        shape = [*x.shape[:axis], *positions.shape, *x.shape[axis + 1 :]]
        return te.compute(shape, entry, name="gather")

    return builder.te("gather", compute, data, indices)


def _gather_one(builder: Builder, data: Value, indices: Value, axis: int) -> Value:
    """One entry of an axis, at an index known while building."""
    assert indices.host is not None
    position = indices.host.reshape(-1)[0]
    if not indices.symbolic:
        position = int(position)

    def compute(x: Any, position: Any, ones: list[int]) -> Any:
        def entry(*index: Any) -> Any:
            before, after = index[:axis], index[axis + indices.rank :]
            return x(*before, wrap(extent(position), x.shape[axis]), *after)

        shape = [*x.shape[:axis], *map(extent, ones), *x.shape[axis + 1 :]]
        return te.compute(shape, entry, name="gather")

    return builder.te("gather", compute, data, position, [1] * indices.rank)


def _gather_packed(builder: Builder, data: Value, indices: Value) -> Value:
    """Rows of a table that is also multiplied with: both read the weights of the product."""
    known_type = activation(data.dtype)
    if on_gpu() and known_type is not None:
        fragments = stored_fragments(builder, builder.transpose(data, [1, 0]))
        sizes = (int(data.shape[0]), int(data.shape[1]))
        return builder.steps(
            lambda: [gather_step(Dense(known_type), *sizes, indices.dtype, ("x", "weight"))],
            indices,
            {"weight": fragments.expr},
            features=0,
        )
    panels = stored_panels(builder, builder.transpose(data, [1, 0]))
    rows = int(data.shape[0])

    def compute(panels: Any, positions: Any) -> Any:
        def entry(*index: Any) -> Any:
            *at, column = index
            row = wrap(positions(*at), extent(rows))
            panel, lane = tirx.floordiv(row, COLUMNS), tirx.floormod(row, COLUMNS)
            return panels(panel, column, lane)

        return te.compute([*positions.shape, panels.shape[1]], entry, name="gather")

    return builder.te("gather", compute, panels, indices)


def _gather_elements(builder: Builder, node: Node) -> Value:
    data, indices = node[0], node[1]
    axis = node.axis(node.attribute("axis", 0), data.rank)

    def compute(x: Any, positions: Any) -> Any:
        def entry(*index: Any) -> Any:
            at = wrap(positions(*index), x.shape[axis])
            return x(*index[:axis], at, *index[axis + 1 :])

        return te.compute(positions.shape, entry, name="gather_elements")

    return builder.te("gather_elements", compute, data, indices)


def _gather_nd(builder: Builder, node: Node) -> Value:
    data, indices = node[0], node[1]
    batch = int(node.attribute("batch_dims", 0))
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        raise node.refusal("the number of indexed axes is symbolic")

    def compute(x: Any, positions: Any) -> Any:
        outer = indices.rank - 1

        def entry(*index: Any) -> Any:
            at, rest = index[:outer], index[outer:]
            axes = [wrap(positions(*at, extent(k)), x.shape[batch + k]) for k in range(depth)]
            return x(*at[:batch], *axes, *rest)

        shape = [*positions.shape[:-1], *x.shape[batch + depth :]]
        return te.compute(shape, entry, name="gather_nd")

    return builder.te("gather_nd", compute, data, indices)


def _scatter_nd(builder: Builder, node: Node) -> Value:
    mode = _mode(node)
    return builder.te(
        "scatter_nd",
        lambda x, positions, updates: topi.scatter_nd(x, _axes_first(positions), updates, mode),
        node[0],
        builder.cast(node[1], "int64"),
        node[2],
    )


def _axes_first(positions: Any) -> Any:
    """Topi wants the indexed axes in front."""
    rank = len(positions.shape)
    return topi.transpose(positions, [rank - 1, *range(rank - 1)])


def _scatter_elements(builder: Builder, node: Node) -> Value:
    axis, mode = node.axis(node.attribute("axis", 0), node[0].rank), _mode(node)
    return builder.te(
        "scatter_elements",
        lambda x, positions, updates: topi.scatter_elements(x, positions, updates, axis, mode),
        node[0],
        builder.cast(node[1], "int64"),
        node[2],
    )


def _mode(node: Node) -> str:
    mode = str(node.attribute("reduction", "none"))
    return {"none": "update", "mul": "mul"}.get(mode, mode)


def _one_hot(builder: Builder, node: Node) -> Value:
    indices = node[0]
    depth = node.known(1, "the depth").reshape(-1)[0]
    axis = node.attribute("axis", -1)
    axis = axis + indices.rank + 1 if axis < 0 else axis
    values = node.known(2, "the pair of values")
    off, on = (entry.item() for entry in values.reshape(-1))
    dtype = node[2].dtype
    count = depth if indices.symbolic else int(depth)

    def compute(positions: Any, depth: Any) -> Any:
        shape = [*positions.shape[:axis], extent(depth), *positions.shape[axis:]]

        def entry(*index: Any) -> Any:
            at = positions(*index[:axis], *index[axis + 1 :]).astype("int64")
            at = tirx.Select(at < 0, at + extent(depth), at)
            hit = tirx.EQ(at, index[axis])
            return tirx.Select(hit, tirx.const(on, dtype), tirx.const(off, dtype))

        return te.compute(shape, entry, name="one_hot")

    return builder.te("one_hot", compute, indices, count)


LOWERINGS: dict[str, Lowering] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
