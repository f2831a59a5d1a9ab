"""`y[b, i, j] = Σ_window W[window] · x[b, window of (i, j)]`, channels last, each with each.

parallel  blocks of outputs
  their windows side by side in the second-level cache, zeros for what lies outside of x
  serial    groups of panels: the product of `gemm`, finished and stored
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from tvm import tirx

from .base import Output, Step
from .blocks import LANES, block_count, even_group
from .finish import Finish, Value, outputs, present, put
from .gemm import FloatTiling, product
from .targets import float_tiling
from .tasks import Task, tasks, widths
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    index,
    load,
    local,
    only_if,
    prim_func_of,
    ramp,
    serial,
    store,
    zeros,
)
from .windows import Windows, images, inside

_ROWS = 48
"""Outputs of a block, at most."""

_ENTRIES = 65536
"""Of the windows of a block, at most: they and a panel of weights share the second-level cache."""


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution."""

    windows: Windows
    in_channels: int
    out_channels: int

    @property
    def depth(self) -> int:
        """Inputs of one output."""
        return self.windows.size * self.in_channels


def convolution_step(spec: Convolution) -> Step:
    """`(x, weight) -> y`: x `[batch, height, width, in]`, y a row of `out` for each output."""
    make = partial(convolution, spec, float_tiling())
    y = Output("y", spec.out_channels, "float32")
    return Step("convolution", make(), ("x", "weight"), (y,), make)


@cache
def convolution(spec: Convolution, tiling: FloatTiling, finish: Finish | None = None) -> PrimFunc:
    """The PrimFunc `(x, weight, *finish, y)`; weight `[ceil(out / 16), depth, 16]`."""
    windows, depth = spec.windows, spec.depth
    batch, rows = tirx.Var("batch", "int64"), tirx.Var("rows", "int64")
    lengths, panels = windows.lengths(), block_count(spec.out_channels)
    most = max(min(_ROWS, _ENTRIES // depth), len(tiling.panels))
    group = even_group(panels, tiling.group)

    def body(x: Buffer, weight: Buffer, *stored: Buffer) -> None:
        def multiply(task: Task, laid_out: Buffer, left: Expr, wide: int) -> None:
            def finished(row: Expr, panel: int, value: Value) -> None:
                column = (left + panel) * LANES
                row = task.first + row
                put(stored, finish, row, column, value, present(spec.out_channels, column))

            product(
                tiling,
                task.rows,
                wide,
                depth,
                lambda row, k: load(laid_out, row * depth + k),
                lambda panel, k: load(weight, left + panel, k, ramp(0, LANES)),
                finished,
            )

        # Each task computes all panels of its rows, whose windows it has laid out.
        for task in tasks(rows, most, 1, 1):
            laid_out = local(most * depth, "float32")
            with serial(task.rows) as row:
                _lay_out(spec, lengths, x, task.first + row, laid_out, row * depth)
            with serial(-(-panels // group)) as part:
                left = bind(part * group)
                for wide in widths(panels, group, left):
                    multiply(task, laid_out, left, wide)

    arguments = [
        images(batch, lengths, spec.in_channels),
        Argument("weight", (panels, depth, LANES), "float32"),
        *outputs(rows, spec.out_channels, finish),
    ]
    return prim_func_of(arguments, body)


def _lay_out(
    spec: Convolution,
    lengths: tuple[Expr, Expr],
    x: Buffer,
    output: Expr,
    target: Buffer,
    start: Expr,
) -> None:
    """Copies the window of one output."""
    windows, channels = spec.windows, spec.in_channels
    high, wide = (windows.outputs(axis, length) for axis, length in enumerate(lengths))
    wide = bind(wide)
    line = bind(tirx.floordiv(output, wide))
    column = bind(output - line * wide)
    image = bind(tirx.floordiv(line, high))
    row = bind(line - image * high)
    with serial(windows.kernel[0]) as i:
        source_row = bind(windows.place(0, row, i))
        with serial(windows.kernel[1]) as j:
            source = bind(windows.place(1, column, j))
            to = bind(start + (i * windows.kernel[1] + j) * channels)
            here = tirx.all(inside(source_row, lengths[0]), inside(source, lengths[1]))

            def value(k: Expr, lanes: int) -> Expr:
                return load(x, image, source_row, source, ramp(k, lanes))

            with only_if(here):
                _each(channels, value, target, to)
            with only_if(tirx.Not(here)):
                _each(channels, lambda _, n: zeros("float32", n), target, to)


def _each(channels: int, value: Callable[[Expr, int], Expr], target: Buffer, start: Expr) -> None:
    """Stores a value for each channel, in vectors as far as they go."""
    whole, rest = divmod(channels, LANES)
    if whole:
        with serial(whole) as number:
            k = number * LANES
            store(target, value(k, LANES), ramp(start + k, LANES))
    for k in range(whole * LANES, whole * LANES + rest):
        store(target, value(index(k), 1), start + k)
