"""`y = x Wᵀ` with W in panels of 16 outputs, `[ceil(out / 16), in, 16]`.

parallel  blocks of rows, groups of panels
  the product of `gemm`, finished and stored
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from .base import Output, Step
from .blocks import LANES, block_count
from .finish import Finish, Value, outputs, present, put
from .gemm import FloatTiling, product
from .targets import Choices, float_choices
from .tasks import Task, tasks
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    by_rows,
    convert,
    load,
    prim_func,
    ramp,
)


def dense_step(out_features: int, in_features: int, dtype: str = "float32") -> Step:
    """`(x, weight) -> y`, float32 but for the weight, which may be float16."""
    tilings = float_choices("dense", out_features, in_features)
    make = partial(dense, out_features, in_features, dtype, tilings)
    y = Output("y", out_features, "float32")
    return Step("dense", make(), ("x", "weight"), (y,), make)


@cache
def dense(
    out_features: int,
    in_features: int,
    dtype: str,
    tilings: Choices[FloatTiling],
    finish: Finish | None = None,
) -> PrimFunc:
    """The PrimFunc `(x, weight, *finish, y)`."""
    panels, size = block_count(out_features), np.dtype(dtype).itemsize

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [
            Argument("x", (rows, in_features), "float32"),
            Argument("weight", (panels, in_features, LANES), dtype),
            *outputs(rows, out_features, finish),
        ]

    def body(rows: Expr, x: Buffer, weight: Buffer, *stored: Buffer) -> None:
        def emit_task(tiling: FloatTiling, task: Task) -> None:
            def weights_at(panel: int, k: Expr) -> Expr:
                weights = load(weight, task.left + panel, k, ramp(0, LANES))
                return weights if dtype == "float32" else convert(weights, "float32", LANES)

            def finished(row: Expr, panel: int, value: Value) -> None:
                column = (task.left + panel) * LANES
                row = task.first + row
                put(stored, finish, row, column, value, present(out_features, column))

            product(
                tiling.reading(in_features * size * LANES),
                task.rows,
                task.panels,
                in_features,
                lambda row, k: load(x, task.first + row, k),
                weights_at,
                finished,
                least=task.least,
            )

        def emit(tiling: FloatTiling, least: int, _: int | None) -> None:
            for task in tasks(rows, tiling.rows, panels, tiling.group, least=least):
                emit_task(tiling, task)

        by_rows(rows, tilings, emit)

    return prim_func(arguments, body)
