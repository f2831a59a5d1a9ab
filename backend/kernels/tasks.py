"""How the work of a kernel is divided among the threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from .blocks import even_group
from .tir import Expr, bind, index, parallel, serial

_ENTRIES = 8192
"""Of a task that reads each entry a few times: fewer do not pay for waking a thread."""


@contextmanager
def row_by_row(rows: Expr, features: int) -> Iterator[Expr]:
    """Rows of `features` entries, each on its own: yields one row of a task's block of them."""
    block = max(_ENTRIES // features, 1)
    with parallel(tirx.floordiv(rows + (block - 1), index(block))) as number:
        start = number * block
        with serial(tirx.min(index(block), rows - start)) as i:
            yield start + i


@dataclass(frozen=True)
class Task:
    """Some rows and some neighbouring panels of one block of a weight.

    Attributes:
        block: of the weight.
        left: the first panel in it.
        panels: how many; the same for all tasks.
        first: the first row.
        rows: how many.
    """

    block: Expr
    left: Expr
    panels: int
    first: Expr
    rows: Expr


@contextmanager
def tasks(rows: Expr, tall: int, panels: int, wide: int, blocks: int = 1) -> Iterator[Task]:
    """Tasks of up to `tall` rows, all of nearly as many, and up to `wide` panels.

    The last task of a block overlaps the one before instead of being narrower.
    """
    group = even_group(panels, wide)
    groups = -(-panels // group)
    parts = bind(tirx.max(tirx.floordiv(rows + (tall - 1), index(tall)), index(1)))
    least = bind(tirx.floordiv(rows, parts))
    taller = bind(rows - least * parts)
    with parallel(parts * (blocks * groups)) as number:
        part = bind(tirx.floordiv(number, index(blocks * groups)))
        place = bind(number - part * (blocks * groups))
        block = bind(tirx.floordiv(place, index(groups)))
        yield Task(
            block=block,
            left=bind(tirx.min((place - block * groups) * group, index(panels - group))),
            panels=group,
            first=bind(part * least + tirx.min(part, taller)),
            rows=bind(least + tirx.Cast("int64", part < taller)),
        )
