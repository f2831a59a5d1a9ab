"""`y[b, i, j, c] = Σ_window w[window, c] · x[b, window of (i, j), c]`: each channel by itself.

parallel  lines of outputs
  serial    some channels, whose weights stay in the first-level cache
    serial    tiles of neighbouring outputs whose windows lie inside
      serial    16 channels, their sums in registers
    serial    the other outputs, one by one, each entry of their windows behind a condition
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

from tvm import tirx

from .base import Output, Step
from .blocks import LANES, block_count
from .finish import Finish, lane_of, outputs, put
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
    parallel,
    prim_func_of,
    ramp,
    serial,
    store,
    zeros,
)
from .windows import Windows, images, inside

MOST_ENTRIES = 49
"""Of a window: its loops are unrolled."""

_TILE = 4
"""Outputs of a tile, which share the weights and some of the inputs."""

_BLOCKS = 8
"""Of 16 channels, whose weights are used for a line: neighbours in memory are read in order."""


@dataclass(frozen=True)
class Depthwise:
    """Sizes of a convolution of each channel by itself, of which there are at least 16."""

    windows: Windows
    channels: int


def depthwise_step(spec: Depthwise) -> Step:
    """`(x, weight) -> y`: x `[batch, height, width, channels]`, y a row for each output."""
    make = partial(depthwise, spec)
    y = Output("y", spec.channels, "float32")
    return Step("depthwise", make(), ("x", "weight"), (y,), make)


@cache
def depthwise(spec: Depthwise, finish: Finish | None = None) -> PrimFunc:
    """The PrimFunc `(x, weight, *finish, y)`; weight `[entries of a window, channels]`."""
    windows, channels = spec.windows, spec.channels
    batch, rows = tirx.Var("batch", "int64"), tirx.Var("rows", "int64")
    lengths = windows.lengths()

    def body(x: Buffer, weight: Buffer, *stored: Buffer) -> None:
        high, wide = (bind(windows.outputs(axis, length)) for axis, length in enumerate(lengths))
        first, tiles = _whole_tiles(windows, lengths[1], wide)
        done = bind(tiles * _TILE)
        blocks = block_count(channels)
        with parallel(batch * high) as line, serial(-(-blocks // _BLOCKS)) as part:
            image = bind(tirx.floordiv(line, high))
            block = bind(part * _BLOCKS)
            outputs_of = _Line(
                spec=spec,
                finish=finish,
                lengths=lengths,
                x=x,
                weight=weight,
                stored=stored,
                image=image,
                row=bind(line - image * high),
                start=bind(line * wide),
                block=block,
                blocks=bind(tirx.min(index(_BLOCKS), blocks - block)),
            )
            with serial(tiles) as number:
                outputs_of.emit(bind(first + number * _TILE), _TILE, checked=False)
            with serial(wide - done) as number:
                skipped = tirx.Select(number < first, index(0), done)
                outputs_of.emit(bind(number + skipped), 1, checked=True)

    arguments = [
        images(batch, lengths, channels),
        Argument("weight", (windows.size, channels), "float32"),
        *outputs(rows, channels, finish),
    ]
    return prim_func_of(arguments, body)


def _whole_tiles(windows: Windows, width: Expr, outputs: Expr) -> tuple[Expr, Expr]:
    """The first output whose window lies inside, and how many tiles of such ones follow."""
    stride, before = windows.strides[1], windows.before[1]
    reach = (windows.kernel[1] - 1) * windows.dilations[1]
    first = index(-(-before // stride))
    last = tirx.min(tirx.floordiv(width - 1 - reach + before, index(stride)), outputs - 1)
    count = tirx.max(last - first + 1, index(0))
    return first, bind(tirx.floordiv(count, index(_TILE)))


@dataclass(frozen=True, eq=False)
class _Line:
    """Emits outputs of one line.

    Attributes:
        row: of the outputs in their image.
        start: the row of y for the first output of the line.
        block: the first of the blocks of 16 channels.
        blocks: how many.
    """

    spec: Depthwise
    finish: Finish | None
    lengths: tuple[Expr, Expr]
    x: Buffer
    weight: Buffer
    stored: tuple[Buffer, ...]
    image: Expr
    row: Expr
    start: Expr
    block: Expr
    blocks: Expr

    def emit(self, column: Expr, count: int, *, checked: bool) -> None:
        """Sums and stores `count` outputs of some channels from `column` on."""
        with serial(self.blocks) as number:
            # The last block overlaps the one before instead of being narrower.
            last = self.spec.channels - LANES
            channel = bind(tirx.min((self.block + number) * LANES, index(last)))
            self._outputs(channel, column, count, checked=checked)

    def _outputs(self, channel: Expr, column: Expr, count: int, *, checked: bool) -> None:
        windows, (high, wide) = self.spec.windows, self.lengths
        every, lanes = ramp(0, LANES), ramp(channel, LANES)
        sums = [local(LANES, "float32") for _ in range(count)]
        for total in sums:
            store(total, zeros("float32", LANES), every)
        for i in range(windows.kernel[0]):
            row = bind(windows.place(0, self.row, i))
            with only_if(inside(row, high)):
                for j in range(windows.kernel[1]):
                    weights = load(self.weight, i * windows.kernel[1] + j, lanes)
                    for number, total in enumerate(sums):
                        place = windows.place(1, column + number, j)
                        value = load(total, every)
                        value = value + load(self.x, self.image, row, place, lanes) * weights
                        if not checked:
                            store(total, value, every)
                            continue
                        with only_if(inside(place, wide)):
                            store(total, value, every)
        for number, total in enumerate(sums):
            target = self.start + column + number
            put(self.stored, self.finish, target, channel, partial(lane_of, total, index(0)))
