"""The grids of tilings: for each kind of tiling, the values of its fields that are worth a try.

A new kind of tiling is made tunable by one function here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import singledispatch
from typing import Any

from ..kernels.gemm import FloatTiling

Grid = Mapping[str, Sequence[Any]]
"""Values by field; fields that are left out stay as the rule has them."""


@singledispatch
def grid(tiling: object, rows: int) -> Grid:
    """The values to try for a tiling that serves up to `rows` rows; none: it is not tuned."""
    return {}


@grid.register
def _(tiling: FloatTiling, rows: int) -> Grid:
    if rows == 1:
        # One row has tiles of one height, and one chunk is as good as several.
        return {
            "panels": ((1,), (2,), (4,), (8,)),
            "chains": (1, 2, 4),
            "group": (1, 2, 4, 8, 16),
            "unroll": (1, 2, 4, 8),
        }
    # Code grows with the product of heights, group and unrolling, and so does the time to make it.
    panels = (
        (4, 2, 1, 1),
        (4, 2, 2, 2),
        (4, 4, 4, 4),
        (4, 2, 2, 1, 1, 1),
        (4, 4, 2, 2, 2, 2),
        (4, 4, 4, 4, 4, 4),
    )
    return {
        "panels": panels,
        "chunk": (128, 256, 384, 768),
        "group": (1, 2, 4),
        "unroll": (1, 2, 4),
    }


def candidates(tiling: Any, rows: int, trials: int, seed: int) -> list[dict[str, Any]]:
    """Up to `trials` points of the grid in a random order, each as what differs from the rule's.

    Args:
        tiling: the rule's.
        rows: that it serves.
        trials: how many at most.
        seed: of the order.
    """
    values = grid(tiling, rows)
    if not values:
        return []
    own = {field.name: getattr(tiling, field.name) for field in fields(tiling)}
    points = list(itertools.product(*values.values()))
    random.Random(seed).shuffle(points)
    found = []
    for point in points:
        changed = {
            name: value for name, value in zip(values, point, strict=True) if value != own[name]
        }
        if changed and changed not in found:
            found.append(changed)
        if len(found) == trials:
            break
    return found[:trials]
