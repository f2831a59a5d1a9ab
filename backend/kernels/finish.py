"""`Finish`: what is done to each output of a product before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .tir import Argument, Buffer, Expr, only_if, serial, store, vectorized

Value = Callable[[Expr], Expr]
"""The sum of a lane."""


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


def outputs(rows: Expr, width: int, finish: Finish | None) -> list[Argument]:
    """The further inputs of a finish, and `y`."""
    if finish is None:
        return [Argument("y", (rows, width), "float32")]
    return [*finish.arguments(rows), Argument("y", (rows, width), finish.dtype)]


def put(
    buffers: Sequence[Buffer],
    finish: Finish | None,
    row: Expr,
    column: Expr,
    lanes: int,
    value: Value,
    missing: Expr | None = None,
) -> None:
    """Finishes and stores neighbouring outputs of one row.

    Args:
        buffers: those of `outputs`.
        finish: what is done to them, if anything.
        row: of y.
        column: of the first output.
        lanes: how many.
        value: the sum of each.
        missing: how many columns there are from `column` on, if it may be fewer than `lanes`.
    """
    *further, y = buffers

    def one(lane: Expr) -> None:
        result = value(lane)
        if finish is not None:
            result = finish.apply(further, result, row, column + lane)
        store(y, result, row, column + lane)

    if missing is None:
        with vectorized(lanes) as lane:
            one(lane)
        return
    with only_if(missing >= lanes), vectorized(lanes) as lane:
        one(lane)
    with only_if(missing < lanes), serial(missing) as lane:
        one(lane)
