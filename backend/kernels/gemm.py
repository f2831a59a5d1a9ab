"""The register-tiled product of floats: `y[row, panel] = Σ_k x[row, k] · w[panel, k]`.

    serial    tiles of rows, all of nearly the same height
      serial    chunk of the depth: the rows of x and the panels of the chunk stay in the cache
        unrolled  rows × panels of 16 outputs in registers

A chunk's sums are added to those of the chunks before: a running sum of float32 loses digits with
its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from .blocks import LANES
from .finish import Value, lane_of
from .tasks import EvenParts
from .tir import (
    Buffer,
    Expr,
    bind,
    broadcast,
    index,
    load,
    local,
    only_if,
    ramp,
    serial,
    store,
    unknown_zero,
    zeros,
)


@dataclass(frozen=True)
class FloatTiling:
    """How a product of floats is cut up.

    Attributes:
        panels: panels of 16 outputs that are summed at once, by the height of the tile: the entry
            0 is for one row. Its length is the greatest height.
        chains: independent sums of a single row, since an addition takes about four cycles.
        group: panels that one task computes.
        rows: that one task computes, at most.
        chunk: inputs that are added up before the sums are, at most: of longer chunks the panels,
            whose addresses are alike, push each other out of the first-level cache.
        chunk_of_one: the same for a single row, which reads every weight once.
        unroll: inputs of one iteration.
    """

    panels: tuple[int, ...] = (4, 2, 1, 1)
    chains: int = 2
    group: int = 4
    rows: int = 64
    chunk: int = 640
    chunk_of_one: int = 384
    unroll: int = 2


XAt = Callable[[Expr, Expr], Expr]
"""The number at a row and a depth."""

WeightsAt = Callable[[int, Expr], Expr]
"""The 16 weights of a panel at a depth."""

Put = Callable[[Expr, int, Value], None]
"""Emits what becomes of the 16 sums of a row and a panel, given by lane."""


def product(
    tiling: FloatTiling,
    rows: Expr,
    panels: int,
    depth: int | Expr,
    x_at: XAt,
    weights_at: WeightsAt,
    put: Put,
) -> None:
    """Emits the sums of all rows with `panels` panels, which `put` takes.

    A symbolic depth is one chunk.
    """
    most = len(tiling.panels)
    totals = local(most * panels * LANES, "float32")
    sums = Sums(tiling, panels, x_at, weights_at, totals)
    nothing = bind(unknown_zero(rows))
    with tiles(rows, most) as (first, height):

        def emit(tall: int) -> None:
            chunk = tiling.chunk_of_one if tall == 1 else tiling.chunk
            steps = _steps(depth, chunk) if isinstance(depth, int) else 1
            length = -(-depth // steps) if isinstance(depth, int) else depth
            if steps > 1:
                for entry in range(tall * panels):
                    store(totals, zeros("float32", LANES), ramp(entry * LANES, LANES))
            with serial(steps) as step:
                start = bind(step * length)
                last: Expr = index(length) + nothing
                if steps > 1 and depth % steps:
                    last = tirx.min(last, depth - start)
                last = bind(last)
                sums.emit(tall, first, start, last, index(0), add=steps > 1)

        by_height(height, most, emit)
        with serial(height) as row:
            for panel in range(panels):
                start = (row * panels + panel) * LANES
                put(first + row, panel, partial(lane_of, totals, start))


@contextmanager
def tiles(rows: Expr, most: int) -> Iterator[tuple[Expr, Expr]]:
    """Tiles of up to `most` rows, all of nearly the same height: their first row and height."""
    parts = EvenParts.of(rows, most)
    with serial(parts.count) as number:
        yield parts.part(number)


def by_height(height: Expr, most: int, emit: Callable[[int], None]) -> None:
    """Emits the code for each height that a tile can have."""
    for tall in range(1, most + 1):
        with only_if(tirx.EQ(height, index(tall))):
            emit(tall)


def _steps(depth: int, chunk: int) -> int:
    """The number of chunks, equal ones if that does not take twice as many."""
    least = max(-(-depth // chunk), 1)
    return next((steps for steps in range(least, 2 * least) if depth % steps == 0), least)


@dataclass(frozen=True, eq=False)
class Sums:
    """Emits the sums of a few rows over a chunk of the depth.

    Attributes:
        totals: `[row, panel, 16]`, where the sums go.
    """

    tiling: FloatTiling
    panels: int
    x_at: XAt
    weights_at: WeightsAt
    totals: Buffer

    def emit(
        self, rows: int, first: Expr, start: Expr, length: Expr, target: Expr, *, add: bool
    ) -> None:
        """Stores or adds the sums of `rows` rows from x's row `first` on, at the row `target`."""
        wide = min(self.tiling.panels[rows - 1], self.panels)
        for left in range(0, self.panels, wide):
            columns = range(left, min(left + wide, self.panels))
            self._columns(rows, columns, first, start, length, target, add)

    def _columns(
        self,
        rows: int,
        panels: range,
        first: Expr,
        start: Expr,
        length: Expr,
        target: Expr,
        add: bool,
    ) -> None:
        chains, unroll = self.tiling.chains if rows == 1 else 1, self.tiling.unroll
        width = len(panels)
        # A buffer for each row: TVM takes what is above 1 KB from its workspace, by a call.
        sums = [local(width * chains * LANES, "float32") for _ in range(rows)]

        def place(panel: int, chain: int) -> Expr:
            return ramp((panel * chains + chain) * LANES, LANES)

        def step(k: Expr, chain: int) -> None:
            weights = [self.weights_at(panel, k) for panel in panels]
            for row in range(rows):
                x = broadcast(self.x_at(first + row, k), LANES)
                for panel, values in enumerate(weights):
                    where = place(panel, chain)
                    store(sums[row], load(sums[row], where) + x * values, where)

        for row in range(rows):
            for entry in range(width * chains):
                store(sums[row], zeros("float32", LANES), ramp(entry * LANES, LANES))
        whole = tirx.floordiv(length, index(unroll))
        with serial(whole) as number:
            for j in range(unroll):
                step(start + number * unroll + j, j % chains)
        with serial(length - whole * unroll) as k:
            step(start + whole * unroll + k, 0)
        for row in range(rows):
            for i, panel in enumerate(panels):
                total = sum(
                    (load(sums[row], place(i, chain)) for chain in range(1, chains)),
                    load(sums[row], place(i, 0)),
                )
                where = ramp(((target + row) * self.panels + panel) * LANES, LANES)
                store(self.totals, load(self.totals, where) + total if add else total, where)
