"""The grids of tilings: for each kind of tiling, the values of its fields that are worth a try.

A new kind of tiling is made tunable by one function here. Code grows with the product of a tile's
heights, its panels and its unrolling, and so does the time to generate it: grids stay below what
takes seconds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any

from ..kernels.code_products import FEW
from ..kernels.code_task import CodeTiling
from ..kernels.cuda.few_rows import FewRowsTiling
from ..kernels.cuda.many_rows import ManyRowsTiling
from ..kernels.cuda.warpgroup_rows import WarpgroupRowsTiling
from ..kernels.gemm import FloatTiling
from ..kernels.targets import with_fields

Grid = Mapping[str, Sequence[Any]]
"""Values by field, as `with_fields` takes them; fields that are left out stay as the rule says."""

_ONE_HEIGHT = ((1,), (2,), (4,))
_HEIGHTS = (
    (4, 2, 1, 1),
    (4, 2, 2, 2),
    (4, 4, 4, 4),
    (4, 2, 2, 1, 1, 1),
    (4, 4, 2, 2, 2, 2),
    (4, 4, 4, 4, 4, 4),
)
"""Panels by the height of a tile: one row, and as many rows as registers hold sums for."""


@singledispatch
def grid(tiling: object, kind: str, rows: int) -> Grid:
    """The values to try for a tiling of a kind of kernel that serves up to `rows` rows.

    None at all: it is not tuned.
    """
    return {}


@grid.register
def _(tiling: FloatTiling, kind: str, rows: int) -> Grid:
    if rows == 1:
        # One chunk is as good as several.
        return {
            "panels": (*_ONE_HEIGHT, (8,)),
            "chains": (1, 2, 4),
            "group": (2, 4, 8, 16),
            "unroll": (1, 2, 4, 8),
            "side_by_side": (False, True),
        }
    return {
        "panels": _HEIGHTS,
        "chunk": (128, 384, 640, 1024),
        "group": (2, 4, 8),
        "unroll": (1, 2, 4),
    }


@grid.register
def _(tiling: CodeTiling, kind: str, rows: int) -> Grid:
    rounded = kind.endswith("_int8")
    if rows == 1:
        return {"group": (2, 4, 8), **({"chains": (1, 2, 4)} if rounded else {})}
    if rounded and rows <= max(FEW):
        # Their sums stay in registers: they are in no block.
        return {"group": (2, 4, 8), "panels": _HEIGHTS}
    of_the_products = (
        {"panels": _HEIGHTS}
        if rounded
        else {"floats": _points({"panels": _HEIGHTS, "unroll": (1, 2, 4)})}
    )
    return {"group": (2, 4, 8), "block": (16, 32, 64, 128), **of_the_products}


@grid.register
def _(tiling: FewRowsTiling, kind: str, rows: int) -> Grid:
    # Its rows are those of the rule: more of them would be left idle.
    return {"warps": (4, 8, 16), "tiles": (1, 2, 4), "ahead": (2, 4, 8)}


@grid.register
def _(tiling: ManyRowsTiling, kind: str, rows: int) -> Grid:
    return {
        "row_warps": (1, 2, 4),
        "column_warps": (1, 2, 4, 8),
        "eights": (2, 4, 8),
        "tiles": (1, 2, 4),
        "stages": (2, 3, 4, 5),
    }


@grid.register
def _(tiling: WarpgroupRowsTiling, kind: str, rows: int) -> Grid:
    return {
        "warpgroups": (1, 2, 4),
        "height": (128, 256),
        "tiles": (1, 2),
        "stages": (3, 4, 5, 6),
    }


def candidates(tiling: Any, kind: str, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """All points of the grid in a random order, each as what differs from the rule's.

    Args:
        tiling: the rule's.
        kind: of the kernel.
        rows: that it serves.
        seed: of the order.
    """
    points = _points(grid(tiling, kind, rows))
    random.Random(seed).shuffle(points)
    changed = (
        {
            name: value
            for name, value in point.items()
            if with_fields(tiling, {name: value}) != tiling
        }
        for point in points
    )
    return filter(None, changed)


def _points(values: Grid) -> list[dict[str, Any]]:
    """Every combination of the values; no combination of no fields."""
    if not values:
        return []
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
