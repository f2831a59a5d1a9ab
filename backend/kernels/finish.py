"""`Finish`: what is done to each output of a product before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .blocks import LANES
from .tir import Argument, Buffer, Expr, load, only_if, serial, store, vectorized

Value = Callable[[Expr], Expr]
"""The sum of a lane."""


def lane_of(sums: Buffer, start: Expr, lane: Expr) -> Expr:
    """The `Value` of sums that lie side by side from `start` on."""
    return load(sums, start + lane)


@dataclass(frozen=True, eq=False)
class Finish:
    """`y[row, column] = apply(buffers, sum, row, column)`.

    Attributes:
        arguments: further buffers that it reads, for a number of rows.
        apply: the expression for one output, which a vector loop evaluates 16 at a time.
        dtype: of the outputs.
    """

    arguments: Callable[[Expr], Sequence[Argument]]
    apply: Callable[[Sequence[Buffer], Expr, Expr, Expr], Expr]
    dtype: str


def one_after_the_other(first: Finish, second: Finish) -> Finish:
    """`second` of what `first`, which reads one buffer, makes of a sum."""

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [*first.arguments(rows), *second.arguments(rows)]

    def apply(buffers: Sequence[Buffer], value: Expr, row: Expr, column: Expr) -> Expr:
        result = first.apply(buffers[:1], value, row, column)
        return second.apply(buffers[1:], result, row, column)

    return Finish(arguments, apply, second.dtype)


def outputs(rows: Expr, width: int, finish: Finish | None) -> list[Argument]:
    """The further inputs of a finish, and `y`."""
    if finish is None:
        return [Argument("y", (rows, width), "float32")]
    return [*finish.arguments(rows), Argument("y", (rows, width), finish.dtype)]


def present(width: int, start: Expr) -> Expr | None:
    """How many outputs there are from `start` on; None if 16 at least, wherever a panel starts."""
    return width - start if width % LANES else None


def put(
    buffers: Sequence[Buffer],
    finish: Finish | None,
    row: Expr,
    column: Expr,
    value: Value,
    count: Expr | None = None,
) -> None:
    """Finishes and stores the 16 outputs of a panel for one row.

    Args:
        buffers: those of `outputs`.
        finish: what is done to them, if anything.
        row: of y.
        column: of the first output.
        value: the sum of each.
        count: how many columns there are from `column` on, if it may be fewer than 16.
    """
    *further, y = buffers

    def one(lane: Expr) -> None:
        result = value(lane)
        if finish is not None:
            result = finish.apply(further, result, row, column + lane)
        store(y, result, row, column + lane)

    if count is None:
        with vectorized(LANES) as lane:
            one(lane)
        return
    with only_if(count >= LANES), vectorized(LANES) as lane:
        one(lane)
    with only_if(count < LANES), serial(count) as lane:
        one(lane)
