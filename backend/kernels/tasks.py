"""How the work of a kernel is divided among the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx

from .blocks import even_group
from .tir import Expr, bind, index, only_if, parallel, serial

_ENTRIES = 8192
"""Of a task that reads each entry a few times: fewer do not pay for waking a thread."""

_BYTES, _PRODUCTS = 200_000, 1_500_000
"""Of weights read, and of bytes multiplied: a thread needs about eight microseconds for either."""


def row_by_row(rows: Expr, features: int, emit: Callable[[Expr], None]) -> None:
    """Calls `emit` with each of some rows of `features` entries, blocks of them in parallel."""
    block = max(_ENTRIES // features, 1)
    with only_if(rows <= block), serial(rows) as row:
        emit(row)
    with (
        only_if(rows > block),
        parallel(tirx.floordiv(rows + (block - 1), index(block))) as number,
    ):
        start = number * block
        with serial(tirx.min(index(block), rows - start)) as i:
            emit(start + i)


def worth_sharing(stored_bytes: int, products: int) -> bool:
    """Whether so much work pays for waking the threads, which takes a few microseconds."""
    return stored_bytes > _BYTES or products > _PRODUCTS


@dataclass(frozen=True)
class EvenParts:
    """Rows in as few parts as there can be, all of nearly the same height.

    Attributes:
        count: of the parts.
        least: rows of the lower ones.
        taller: how many parts, the first ones, have a row more.
    """

    count: Expr
    least: Expr
    taller: Expr

    @classmethod
    def of(cls, rows: Expr, most: int) -> EvenParts:
        """Parts of up to `most` rows."""
        count = bind(tirx.floordiv(rows + (most - 1), index(most)))
        least = bind(tirx.floordiv(rows, tirx.max(count, index(1))))
        return cls(count, least, bind(rows - least * count))

    def part(self, number: Expr) -> tuple[Expr, Expr]:
        """The first row of a part, and how many it has."""
        first = bind(number * self.least + tirx.min(number, self.taller))
        return first, bind(self.least + tirx.Cast("int64", number < self.taller))


def lowest_part(least: int, most: int) -> int:
    """Rows of the lowest of parts of up to `most` rows, where there are `least` rows or more."""
    return min(rows // -(-rows // most) for rows in range(least, least + 2 * most))


@dataclass(frozen=True)
class Task:
    """Some rows and some neighbouring panels of one block of a weight.

    Attributes:
        block: of the weight.
        left: the first panel in it.
        panels: how many.
        first: the first row.
        rows: how many.
        least: rows that every such task has.
    """

    block: Expr
    left: Expr
    panels: int
    first: Expr
    rows: Expr
    least: int


def tasks(
    rows: Expr,
    tall: int,
    panels: int,
    wide: int,
    blocks: int = 1,
    *,
    least: int = 1,
    shared: bool = True,
) -> Iterator[Task]:
    """Tasks of up to `tall` rows, all of nearly as many, and up to `wide` panels.

    There are `least` rows or more.

    They are shared among the threads, or follow one another. Where the last task of a block is
    narrower it comes as a second one, whose code is another; what is emitted meanwhile is the code
    of the task.
    """
    group = even_group(panels, wide, blocks)
    groups = -(-panels // group)
    parts = EvenParts.of(rows, tall)
    with (parallel if shared else serial)(parts.count * (blocks * groups)) as number:
        part = bind(tirx.floordiv(number, index(blocks * groups)))
        place = bind(number - part * (blocks * groups))
        block = bind(tirx.floordiv(place, index(groups)))
        first, height = parts.part(part)
        left = bind((place - block * groups) * group)
        yield from (
            Task(block, left, width, first, height, lowest_part(least, tall))
            for width in widths(panels, group, left)
        )


def widths(panels: int, group: int, left: Expr) -> Iterator[int]:
    """How many panels a group has that starts with the panel `left`: all, or what remains.

    What is emitted meanwhile is the code for so many.
    """
    rest = panels % group
    if not rest:
        yield group
        return
    with only_if(left < panels - rest):
        yield group
    with only_if(left >= panels - rest):
        yield rest
