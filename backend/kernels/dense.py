"""`y = x Wᵀ` with W in panels of 16 outputs, `[ceil(out / 16), in, 16]`.

parallel  groups of panels
  the product of `gemm` for all rows, finished and stored
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from tvm import tirx

from .base import Output, Step
from .blocks import LANES, block_count, even_group
from .finish import Finish, outputs, put
from .gemm import FloatTiling, product
from .targets import Choices, float_choices
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    by_rows,
    convert,
    index,
    load,
    parallel,
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
    panels = block_count(out_features)

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [
            Argument("x", (rows, in_features), "float32"),
            Argument("weight", (panels, in_features, LANES), dtype),
            *outputs(rows, out_features, finish),
        ]

    def body(rows: Expr, x: Buffer, weight: Buffer, *stored: Buffer) -> None:
        def emit(tiling: FloatTiling) -> None:
            group = even_group(panels, tiling.group)
            with parallel(-(-panels // group)) as number:
                # The last group overlaps the one before instead of being narrower.
                left = bind(tirx.min(number * group, index(panels - group)))

                def weights_at(panel: int, k: Expr) -> Expr:
                    weights = load(weight, left + panel, k, ramp(0, LANES))
                    return weights if dtype == "float32" else convert(weights, "float32", LANES)

                def finished(row: Expr, panel: int, value: Expr) -> None:
                    column = (left + panel) * LANES
                    missing = out_features - column if out_features % LANES else None
                    put(stored, finish, row, column, LANES, value, missing)

                product(
                    tiling,
                    rows,
                    group,
                    in_features,
                    lambda row, k: load(x, row, k),
                    weights_at,
                    finished,
                )

        by_rows(rows, tilings, emit)

    return prim_func(arguments, body)
