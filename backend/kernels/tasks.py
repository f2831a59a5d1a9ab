"""How the work of a kernel is divided among the threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def panel_groups(panels: int, most: int, blocks: int = 1) -> Iterator[tuple[Expr, Expr, int]]:
    """Tasks of up to `most` neighbouring panels of one of `blocks` blocks of a weight.

    Yields:
        The block, the first panel in it, and how many panels each task has. The last task of a
        block overlaps the one before instead of being narrower.
    """
    group = even_group(panels, most)
    tasks = -(-panels // group)
    with parallel(blocks * tasks) as number:
        block = bind(tirx.floordiv(number, index(tasks)))
        left = bind(tirx.min((number - block * tasks) * group, index(panels - group)))
        yield block, left, group
