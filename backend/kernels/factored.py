"""`y = x Ŵᵀ` with Ŵ in two block-diagonal factors: low rank is one block, Monarch several.

serial    blocks of rows, whose hidden features the second-level cache holds
  parallel  blocks of the first factor, groups of panels: hidden features
  parallel  blocks of the second factor, groups of panels: outputs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from .base import Output, Step
from .blocks import LANES, block_count
from .finish import Finish, Value, outputs, present, put
from .gemm import FloatTiling, Runs, product
from .targets import Choices, float_choices
from .tasks import EvenParts, Task, lowest_part, tasks
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    by_rows,
    load,
    local,
    prim_func,
    ramp,
    serial,
    store,
    vectorized,
)

_ROWS = 128
"""Of a block."""

_FLOAT = 4
"""Bytes."""

_MANY_PANELS = 64
"""Enough for all threads."""


@dataclass(frozen=True)
class Factored:
    """Sizes of the two factors.

    Output j of the block b of the first factor is the hidden feature `b · rank + j % rank` of the
    block `j // rank` of the second one.

    Attributes:
        out_features: of both together.
        in_features: of both together.
        in_blocks: R, of the first factor.
        out_blocks: K, of the second factor.
        rank: t, hidden features that a block of the first gives to each of the second.
    """

    out_features: int
    in_features: int
    in_blocks: int
    out_blocks: int
    rank: int

    @property
    def middle(self) -> int:
        """Hidden features of a block of the second factor."""
        return self.in_blocks * self.rank


def factored_step(kind: str, spec: Factored, factors: tuple[str, str]) -> Step:
    """`(x, first, second) -> y`."""
    tilings = float_choices(kind, spec.out_features, spec.in_features)
    make = partial(factored, spec, tilings)
    y = Output("y", spec.out_features, "float32")
    return Step(kind, make(), ("x", *factors), (y,), make)


@cache
def factored(
    spec: Factored, tilings: Choices[FloatTiling], finish: Finish | None = None
) -> PrimFunc:
    """The PrimFunc `(x, first, second, *finish, y)`."""
    depth, wide = spec.in_features // spec.in_blocks, spec.out_blocks * spec.rank
    width = spec.out_features // spec.out_blocks
    hidden_panels, panels = block_count(wide), block_count(width)

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [
            Argument("x", (rows, spec.in_features), "float32"),
            Argument("first", (spec.in_blocks, hidden_panels, depth, LANES), "float32"),
            Argument("second", (spec.out_blocks, panels, spec.middle, LANES), "float32"),
            *outputs(rows, spec.out_features, finish),
        ]

    def body(rows: Expr, x: Buffer, first: Buffer, second: Buffer, *stored: Buffer) -> None:
        # What the last panel of a block has beyond its hidden features is never read.
        block_width = hidden_panels * LANES
        hidden_width = spec.in_blocks * block_width
        hidden = local(_ROWS * hidden_width, "float32")
        # The hidden features of an output lie apart, `rank` of each block of the first factor.
        runs = Runs(spec.rank, block_width - spec.rank) if spec.in_blocks > 1 else None
        many = spec.out_blocks * panels >= _MANY_PANELS
        together = local(spec.out_blocks * spec.middle, "float32") if runs and many else None

        def keep(block: Expr, row: Expr, start: Expr, value: Value) -> None:
            with vectorized(LANES) as lane:
                store(hidden, value(lane), row * hidden_width + block * block_width + start + lane)

        def emit(tiling: FloatTiling, least: int, most: int | None) -> None:
            parts = EvenParts.of(rows, _ROWS)
            with serial(parts.count) as number:
                top, height = parts.part(number)
                multiply = partial(_side_by_side, tiling, height, lowest_part(least, _ROWS))
                multiply(
                    spec.in_blocks,
                    hidden_panels,
                    depth,
                    lambda block, row, k: load(x, top + row, block * depth + k),
                    first,
                    keep,
                )

                def finished(block: Expr, row: Expr, start: Expr, value: Value) -> None:
                    row, column = top + row, block * width + start
                    put(stored, finish, row, column, value, present(width, start))

                def put_together(block: Expr) -> None:
                    with serial(spec.in_blocks) as i, serial(spec.rank) as t:
                        source = i * block_width + block * spec.rank + t
                        target = block * spec.middle + i * spec.rank + t
                        store(together, load(hidden, source), target)

                multiply_second = partial(multiply, spec.out_blocks, panels, spec.middle)
                if together is not None and most == 1:
                    # A single row meets each weight once: short runs would hold up reading them.
                    with serial(spec.out_blocks) as block:
                        put_together(block)
                    multiply_second(
                        lambda block, _, k: load(together, block * spec.middle + k),
                        second,
                        finished,
                    )
                    return
                multiply_second(
                    lambda block, row, k: load(hidden, row * hidden_width + block * spec.rank + k),
                    second,
                    finished,
                    runs,
                )

        by_rows(rows, tilings, emit)

    return prim_func(arguments, body)


def _side_by_side(
    tiling: FloatTiling,
    rows: Expr,
    least: int,
    blocks: int,
    panels: int,
    depth: int,
    x_at: Callable[[Expr, Expr, Expr], Expr],
    weights: Buffer,
    keep: Callable[[Expr, Expr, Expr, Value], None],
    runs: Runs | None = None,
) -> None:
    """The products of all blocks of a factor; `keep` takes block, row, first output and values."""

    def emit(task: Task) -> None:
        product(
            tiling.reading(depth * _FLOAT * LANES),
            task.rows,
            task.panels,
            depth,
            lambda row, k: x_at(task.block, task.first + row, k),
            lambda panel, k: load(weights, task.block, task.left + panel, k, ramp(0, LANES)),
            lambda row, panel, value: keep(
                task.block, task.first + row, (task.left + panel) * LANES, value
            ),
            runs,
            task.least,
        )

    # Rows are divided for threads that would have nothing to do: each part reads the weights anew.
    tall = _ROWS if blocks * panels >= _MANY_PANELS else tiling.rows
    for task in tasks(rows, tall, panels, tiling.group, blocks, least=least):
        emit(task)
