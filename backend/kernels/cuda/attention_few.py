"""Attention of few rows: the keys are split over blocks, and the share of a block over its warps.

block   a batch, a head of keys and values, 16 rows, a split of the keys
warp    every so many-th tile of the split, through a ring of its own
what the warps have added up, to the greatest maximum of all: the result, or a part of it
"""

from __future__ import annotations

from tvm import tirx

from ..tir import Buffer, Expr, index, load, only_if, serial, store, vectorized
from .attention_arguments import Given
from .attention_ring import Copier, Ring
from .attention_softmax import SIDES, Powers, base_of, lowest, zero
from .attention_splits import Splits, store_result
from .attention_tiling import AttentionTiling, SharedRows
from .attention_warp import AttentionWarp
from .fragments import EIGHT, SUMS, TILE
from .words import (
    UNIT,
    WARP,
    address,
    barrier,
    call,
    clear,
    divided,
    grid,
    held,
    registers,
    shared_words,
)


def emit_few_rows(given: Given, tiling: AttentionTiling, splits: Splits) -> None:
    """A kernel for any number of rows, 16 at a time; results, or parts if there are splits."""
    blocks = (splits.heads, tirx.Cast("int64", splits.count), splits.blocks)
    with grid(blocks, tiling.warps) as ((x, y, z), warp, lane):
        _Block(given, tiling, splits, (x, y, z), warp, lane).emit()


class _Block:
    """Emits what a thread of one block does."""

    def __init__(
        self,
        given: Given,
        tiling: AttentionTiling,
        splits: Splits,
        block: tuple[Expr, Expr, Expr],
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.given, self.tiling, self.splits, self.spec = given, tiling, splits, given.spec
        self.number, self.split, self.block = block
        self.warp, self.lane = warp, lane
        self.thread = held(warp * WARP + lane)
        self.first = held(self.block * TILE)
        self.head = given.of_head(self.number)

    def emit(self) -> None:
        given, tiling = self.given, self.tiling
        rows = SharedRows(tiling, self.spec, given.activation)
        self.part = rows.part
        self.shared = shared_words(rows.words)
        warp = AttentionWarp(self.head, tiling, self.shared, self.first, index(0), self.lane)
        everyone = Copier(self.shared, tiling.warps * WARP, self.thread, barrier)
        warp.copy_queries(everyone)
        share = held(tirx.Cast("int64", self.splits.share))
        begin = held(self.split * share)
        tiles = held(divided(tirx.min(share, given.keys - begin), tiling.keys))
        mine = held(tirx.truncdiv(tiles + (tiling.warps - 1) - self.warp, index(tiling.warps)))
        alone = Copier(self.shared, WARP, self.lane, lambda: call("__syncwarp"))
        first_word = held(rows.ring + self.warp * (tiling.stages * rows.slot))
        ring = Ring(self.head, tiling, rows, first_word, alone)

        def start(turn: Expr) -> Expr:
            return begin + (turn * tiling.warps + self.warp) * tiling.keys

        ring.fill(mine, start)
        ring.wait_for_older()
        barrier()
        warp.read_queries()
        ring.walk(mine, start, warp.take_keys, warp.take_values)
        warp.softmax.finish()
        barrier()
        self._put_parts(warp)
        barrier()
        self._add_up()

    def _put_parts(self, warp: AttentionWarp) -> None:
        """What the warp has added up for each row, then its maximum and its total."""
        for side in range(SIDES):
            row = held(self.lane // 4 + EIGHT * side)
            with only_if(self.first + row < self.given.rows):
                for eight in range(warp.wide):
                    for i in range(2):
                        column = self.lane % 4 * 2 + (eight * EIGHT + i)
                        self._put(load(warp.sums, eight * SUMS + 2 * side + i), row, column)
                with only_if(self.lane % 4 < 1):
                    self._put(load(warp.softmax.peaks, side), row, self.spec.value_size)
                    self._put(load(warp.softmax.totals, side), row, self.spec.value_size + 1)

    def _put(self, value: Expr, row: Expr, column: Expr | int) -> None:
        place = (self.warp * TILE + row) * self.part + column
        store(self.shared, tirx.reinterpret("uint32", value), place)

    def _given(self, warp: int, row: Expr, column: Expr | int) -> Expr:
        """What a warp has put."""
        place = (warp * TILE + row) * self.part + column
        return tirx.reinterpret("float32", load(self.shared, place))

    def _add_up(self) -> None:
        """Four neighbouring columns of a row by each thread."""
        units = self.spec.value_size // UNIT
        threads = self.tiling.warps * WARP
        with serial(divided(TILE * units, threads)) as turn:
            item = held(turn * threads + self.thread)
            row, unit = held(item // units), held(item % units)
            with only_if(tirx.all(item < TILE * units, self.first + row < self.given.rows)):
                self._add_up_unit(row, unit)

    def _add_up_unit(self, row: Expr, unit: Expr) -> None:
        size, warps = self.spec.value_size, self.tiling.warps
        power = Powers(self.spec)
        peak, total = registers(1, "float32"), registers(1, "float32")
        values, found = registers(UNIT, "float32"), registers(UNIT)
        store(peak, lowest(), 0)
        for warp in range(warps):
            store(peak, tirx.max(load(peak, 0), self._given(warp, row, size)), 0)
        base = held(base_of(load(peak, 0)))
        store(total, zero(), 0)
        clear(values, 0, UNIT)
        for warp in range(warps):
            factor = held(power(self._given(warp, row, size), base))
            store(total, load(total, 0) + self._given(warp, row, size + 1) * factor, 0)
            place = (warp * TILE + row) * self.part + unit * UNIT
            call("undense_load_16", address(found, 0), address(self.shared, place))
            for i in range(UNIT):
                added = tirx.reinterpret("float32", load(found, i)) * factor
                store(values, load(values, i) + added, i)
        count = held(tirx.Cast("int64", self.splits.count))
        with only_if(count > 1):
            self._leave(count, row, unit, load(peak, 0), load(total, 0), values)
        with only_if(count <= 1):
            store_result(self.head, self.first + row, unit * UNIT, load(total, 0), values)

    def _leave(
        self, count: Expr, row: Expr, unit: Expr, peak: Expr, total: Expr, values: Buffer
    ) -> None:
        """A part of the result, for the kernel that adds up splits."""
        size, workspace = self.spec.value_size, self.given.workspace
        place = held(self.splits.place(self.number, self.block, self.split, count))
        with vectorized(UNIT) as i:
            store(workspace, load(values, i), place, row, unit * UNIT + i)
        with only_if(unit < 1):
            store(workspace, peak, place, row, size)
            store(workspace, total, place, row, size + 1)
