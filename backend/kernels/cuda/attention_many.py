"""Attention of many rows: keys and values pass through shared memory once for all warps of a block.

block   a batch, a head of keys and values, as many rows as its warps have
serial  tiles of keys, then of their values, that any of the rows sees; copied ahead
warp    its rows: scores, weights, and their sums of the values
"""

from __future__ import annotations

from tvm import tirx

from ..tir import Expr, index, load, only_if, store
from .attention_arguments import Given
from .attention_ring import Copier, Ring, Use
from .attention_softmax import SIDES, total_of
from .attention_tiling import AttentionTiling, SharedRows
from .attention_warp import AttentionWarp
from .fragments import EIGHT, SUMS, TILE
from .words import (
    UNIT,
    WARP,
    address,
    barrier,
    call,
    divided,
    grid,
    held,
    registers,
    shared_words,
)


def emit_many_rows(given: Given, tiling: AttentionTiling) -> None:
    """A kernel for any number of rows."""
    blocks = divided(given.rows, tiling.rows)
    # The blocks of a head one after the other: they read the same keys.
    count = blocks * given.batch * given.spec.heads
    with grid((count,), tiling.warps) as ((x,), warp, lane):
        # int32: the device divides 64 bits slowly.
        number, each = tirx.Cast("int32", x), tirx.Cast("int32", blocks)
        head = held(tirx.Cast("int64", tirx.truncdiv(number, each)))
        block = x - head * blocks
        if given.spec.causal:
            # Those that see most keys first, so that the last ones to end are short.
            block = blocks - 1 - block
        _Block(given, tiling, head, held(block), warp, lane).emit()


class _Block:
    """Emits what a thread of one block does."""

    def __init__(
        self,
        given: Given,
        tiling: AttentionTiling,
        number: Expr,
        block: Expr,
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.given, self.tiling, self.spec = given, tiling, given.spec
        self.warp, self.lane = warp, lane
        self.head = given.of_head(number)
        self.first = held(block * tiling.rows)
        self.first_of_warp = held(self.first + warp * (TILE * tiling.tiles))

    def emit(self) -> None:
        given, tiling = self.given, self.tiling
        self.rows = SharedRows(tiling, self.spec, given.activation)
        self.shared = shared_words(self.rows.words)
        self.place = held(self.warp * (TILE * tiling.tiles * self.rows.query))
        warp = AttentionWarp(
            self.head, tiling, self.shared, self.first_of_warp, self.place, self.lane
        )
        alone = Copier(self.shared, WARP, self.lane, lambda: call("__syncwarp"))
        warp.copy_queries(alone)
        thread = held(self.warp * WARP + self.lane)
        everyone = Copier(self.shared, tiling.warps * WARP, thread, barrier)
        ring = Ring(self.head, tiling, self.rows, index(self.rows.ring), everyone)
        tiles = held(divided(self._seen(self.first, tiling.rows), tiling.keys))

        def start(turn: Expr) -> Expr:
            return turn * tiling.keys

        ring.fill(tiles, start)
        ring.wait_for_older()
        alone.meet()
        warp.read_queries()
        seen = self._seen(self.first_of_warp, TILE * tiling.tiles)
        ring.walk(
            tiles, start, self._while(seen, warp.take_keys), self._while(seen, warp.take_values)
        )
        warp.softmax.finish()
        self._store(warp)

    def _seen(self, first: Expr, rows: int) -> Expr:
        """Keys that any of some rows sees."""
        if not self.spec.causal:
            return self.given.keys
        last = tirx.min(first + (rows - 1), self.given.rows - 1)
        seen = self.head.position(last) + 1 + self.given.keys - self.given.queries
        return held(tirx.max(seen, index(0)))

    def _while(self, seen: Expr, use: Use) -> Use:
        """The same for tiles of which the warp's rows see something."""
        if not self.spec.causal:
            return use

        def used(place: Expr, start: Expr) -> None:
            with only_if(start < seen):
                use(place, start)

        return used

    def _store(self, warp: AttentionWarp) -> None:
        """Results, in the place of the warp's queries first: rows are stored 16 bytes at a time."""
        activation, wide = self.given.activation, warp.wide
        words = activation.words
        pair_words = words // SUMS  # of two neighbours of a row
        values, stored = registers(2 * SUMS, "float32"), registers(words)
        inverses = [
            held(tirx.const(1.0, "float32") / total_of(self.spec, load(warp.softmax.totals, i)))
            for i in range(self.tiling.tiles * SIDES)
        ]
        call("__syncwarp")
        for tile in range(self.tiling.tiles):
            for columns in range(wide // 2):
                first = (tile * wide + 2 * columns) * SUMS
                for i in range(2 * SUMS):
                    inverse = inverses[tile * SIDES + i // 2 % 2]
                    store(values, load(warp.sums, first + i) * inverse, i)
                call(f"undense_scores_{activation.short}", address(stored, 0), address(values, 0))
                for pair in range(SUMS):
                    eight, side = divmod(pair, SIDES)
                    row = self.lane // 4 + (tile * TILE + side * EIGHT)
                    column = (self.lane % 4 + (2 * columns + eight) * 4) * pair_words
                    place = self.place + row * self.rows.query + column
                    source = address(stored, pair * pair_words)
                    call(f"undense_store_{4 * pair_words}", address(self.shared, place), source)
        call("__syncwarp")
        units = self.spec.value_size // activation.unit
        total = TILE * self.tiling.tiles * units
        for turn in range(divided(total, WARP)):
            item = held(self.lane + turn * WARP)
            row, unit = held(item // units), held(item % units)
            number = held(self.first_of_warp + row)
            with only_if(tirx.all(item < total, number < self.given.rows)):
                result = self.head.result(number, unit * activation.unit)
                source = address(self.shared, self.place + row * self.rows.query + unit * UNIT)
                call("undense_copy_16", address(self.given.y, *result), source)
