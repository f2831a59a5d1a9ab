"""`y = x Ŵᵀ` with Ŵ in packed codes.

    parallel  blocks of rows, groups of panels of 16 outputs
      one row: every word is decoded in registers and multiplied at once
      several: serial groups of inputs: the codes of a group are decoded once to a tile in the
               first-level cache, and multiplied with all rows of the block

No dense weight is ever in memory. With rounded activations the sums of a group are exact int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from .blocks import LANES, block_count
from .code_task import CodeProduct, CodeTiling, Given
from .few_rows import FewRows
from .finish import Finish, Value, outputs, present, put
from .formats import quads_of
from .many_rows import ManyRows
from .rounding import rounded_arguments
from .tasks import Task, tasks, worth_sharing
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    by_rows,
    prim_func,
)

FEW = (1, 2, 4, 8)
"""Rows of x whose sums stay in registers while the codes pass by once."""

_FEW_FLOATS = (1, 2)
"""The same of x in floats; of more rows a decoded tile is as fast."""

_MOST_QUADS = 16
"""Of a unit, for all rows: more make the code long, and its compilation."""

_AS_SLOW = 8
"""Decoding a code to a float and multiplying it, beside a product of bytes."""


@cache
def code_product(
    spec: CodeProduct,
    tilings: tuple[tuple[int | None, CodeTiling], ...],
    finish: Finish | None = None,
) -> PrimFunc:
    """The PrimFunc `(x, codes, scales, *finish, y)`; x is three buffers if rounded."""
    panels = block_count(spec.out_features)

    def arguments(rows: Expr) -> Sequence[Argument]:
        inputs = [Argument("x", (rows, spec.in_features), "float32")]
        if spec.rounded:
            inputs = rounded_arguments(rows, spec.in_features, spec.source.group)
        weights = spec.source.arguments(panels, spec.in_features)
        return [*inputs, *weights, *outputs(rows, spec.out_features, finish)]

    def body(rows: Expr, *buffers: Buffer) -> None:
        count = 3 if spec.rounded else 1
        given = Given(spec, buffers[:count], *buffers[count : count + 2])
        stored = buffers[count + 2 :]
        planes = spec.source.planes
        stored_bytes = planes * panels * spec.source.panel_bytes(spec.in_features)
        products = planes * spec.out_features * spec.in_features
        products *= 1 if spec.rounded else _AS_SLOW

        def emit_task(tiling: CodeTiling, few: int | None, task: Task) -> None:
            def finished(row: Expr, panel: int | Expr, value: Value) -> None:
                column = (task.left + panel) * LANES
                put(stored, finish, row, column, value, present(spec.out_features, column))

            work = (given, tiling, task, finished)
            if few is None:
                ManyRows(*work).emit()
            else:
                FewRows(*work).emit(few)

        def emit(tiling: CodeTiling, few: int | None, least: int) -> None:
            tall = few or tiling.block
            shared = few is None or worth_sharing(stored_bytes, few * products)
            for task in tasks(rows, tall, panels, tiling.group, least=least, shared=shared):
                emit_task(tiling, few, task)

        layout = spec.source.format
        heights = [
            height
            for height in (FEW if spec.rounded else _FEW_FLOATS)
            if not layout.continuous and height * quads_of(layout.codes) <= _MOST_QUADS
        ]
        most_of_few = max(heights, default=0)
        choices = [
            (height, partial(emit, _serving(tilings, height), height)) for height in heights
        ] + [
            (most, partial(emit, tiling, None))
            for most, tiling in tilings
            if most is None or most > most_of_few
        ]
        by_rows(rows, choices, lambda choice, least, _: choice(least))

    return prim_func(arguments, body)


def _serving(tilings: Sequence[tuple[int | None, CodeTiling]], rows: int) -> CodeTiling:
    return next(tiling for most, tiling in tilings if most is None or rows <= most)
