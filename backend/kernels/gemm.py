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
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx

from .blocks import LANES, SHORT_PANEL
from .finish import Value, lane_of
from .tasks import EvenParts, lowest_part
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
        unroll: inputs of one iteration; of a single row as many as chains at least.
        side_by_side: whether a single row sums short panels at once too, instead of one behind the
            other, in four chains.
    """

    panels: tuple[int, ...] = (4, 2, 1, 1)
    chains: int = 2
    group: int = 4
    rows: int = 64
    chunk: int = 640
    unroll: int = 2
    side_by_side: bool = False

    def serving(self, rows: int) -> FloatTiling:
        """The tiling for up to so many rows: one has no taller tiles, and tasks of more panels."""
        if rows > 1:
            return self
        return replace(self, panels=self.panels[:1], group=2 * self.group, chunk=384)

    def reading(self, panel_bytes: int) -> FloatTiling:
        """The tiling for panels of so many bytes that are in memory one behind the other."""
        if len(self.panels) > 1 or self.side_by_side or panel_bytes >= SHORT_PANEL:
            return self
        return replace(self, panels=(1,), chains=4)


@dataclass(frozen=True)
class Runs:
    """Between two runs of `length` inputs x skips `gap` numbers."""

    length: int
    gap: int


XAt = Callable[[Expr, Expr], Expr]
"""The number at a row and a depth, which counts what is skipped between runs."""

WeightsAt = Callable[[int, Expr], Expr]
"""The 16 weights of a panel at a depth."""

Put = Callable[[Expr, int | Expr, Value], None]
"""Emits what becomes of the 16 sums of a row and a panel, given by lane."""


def product(
    tiling: FloatTiling,
    rows: Expr,
    panels: int,
    depth: int | Expr,
    x_at: XAt,
    weights_at: WeightsAt,
    put: Put,
    runs: Runs | None = None,
    least: int = 1,
) -> None:
    """Emits the sums of all rows, `least` or more, with `panels` panels, which `put` takes.

    A symbolic depth is one chunk. A depth in runs is a whole number of them.
    """
    most = len(tiling.panels)
    totals = local(most * panels * LANES, "float32")
    sums = Sums(tiling, panels, x_at, weights_at, totals, runs)
    nothing = bind(unknown_zero(rows))
    with tiles(rows, most) as (first, height):

        def emit(tall: int) -> None:
            steps, length = _steps(depth, tiling.chunk, runs.length if runs else 1)
            if steps > 1:
                for entry in range(tall * panels):
                    store(totals, zeros("float32", LANES), ramp(entry * LANES, LANES))
            with serial(steps) as step:
                start = bind(step * length)
                last: Expr = index(length) + nothing
                if isinstance(depth, int) and steps * length != depth:
                    last = tirx.min(last, depth - start)
                last = bind(last)
                sums.emit(tall, first, start, last, index(0), add=steps > 1)

        by_height(height, least, most, emit)
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


def by_height(height: Expr, least: int, most: int, emit: Callable[[int], None]) -> None:
    """Emits the code for each height up to `most` that a tile of `least` rows or more can have."""
    for tall in range(lowest_part(least, most), most + 1):
        with only_if(tirx.EQ(height, index(tall))):
            emit(tall)


def _steps(depth: int | Expr, chunk: int, run: int) -> tuple[int, int | Expr]:
    """The number of chunks and their length, equal ones if that does not take twice as many."""
    if not isinstance(depth, int):
        return 1, depth
    runs = depth // run
    least = max(-(-runs // max(chunk // run, 1)), 1)
    steps = next((steps for steps in range(least, 2 * least) if runs % steps == 0), least)
    return steps, -(-runs // steps) * run


@dataclass(frozen=True, eq=False)
class Sums:
    """Emits the sums of a few rows over a chunk of the depth.

    Attributes:
        totals: `[row, panel, 16]`, where the sums go.
        runs: of the depth; None is a single one.
    """

    tiling: FloatTiling
    panels: int
    x_at: XAt
    weights_at: WeightsAt
    totals: Buffer
    runs: Runs | None = None

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
        chains = self.tiling.chains if rows == 1 else 1
        unroll = max(self.tiling.unroll, chains)
        width = len(panels)
        # A buffer for each row: TVM takes what is above 1 KB from its workspace, by a call.
        sums = [local(width * chains * LANES, "float32") for _ in range(rows)]

        def place(panel: int, chain: int) -> Expr:
            return ramp((panel * chains + chain) * LANES, LANES)

        def step(k: Expr, skipped: Expr, chain: int) -> None:
            weights = [self.weights_at(panel, k) for panel in panels]
            for row in range(rows):
                x = broadcast(self.x_at(first + row, k + skipped), LANES)
                for panel, values in enumerate(weights):
                    where = place(panel, chain)
                    store(sums[row], load(sums[row], where) + x * values, where)

        for row in range(rows):
            for entry in range(width * chains):
                store(sums[row], zeros("float32", LANES), ramp(entry * LANES, LANES))
        for begin, count, skipped in self._each_run(start, length):
            whole = tirx.floordiv(count, index(unroll))
            with serial(whole) as number:
                for j in range(unroll):
                    step(begin + number * unroll + j, skipped, j % chains)
            with serial(count - whole * unroll) as k:
                step(begin + whole * unroll + k, skipped, 0)
        for row in range(rows):
            for i, panel in enumerate(panels):
                total = sum(
                    (load(sums[row], place(i, chain)) for chain in range(1, chains)),
                    load(sums[row], place(i, 0)),
                )
                where = ramp(((target + row) * self.panels + panel) * LANES, LANES)
                store(self.totals, load(self.totals, where) + total if add else total, where)

    def _each_run(self, start: Expr, length: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Where a run of the chunk starts, its length, and what x has skipped up to there."""
        if self.runs is None:
            yield start, length, index(0)
            return
        before = bind(tirx.floordiv(start, index(self.runs.length)))
        count = bind(index(self.runs.length) + unknown_zero(length))
        with serial(tirx.floordiv(length, index(self.runs.length))) as number:
            begin = bind(start + number * self.runs.length)
            yield begin, count, bind((before + number) * self.runs.gap)
