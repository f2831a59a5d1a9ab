"""Splits of the keys of few rows over blocks, and the kernel that adds them up.

    block   a row of a head of keys
      warp    every so many-th split: its sums, times exp(its maximum − the greatest of all)
    sum of the warps' results in shared memory, divided by the total and stored

The number of splits follows from the lengths of the call, so that a captured graph launches as many
each time (flash decoding: FlashAttention-2, arXiv 2307.08691, with the keys in parallel).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ..tir import Buffer, Expr, index, load, only_if, serial, store, vectorized
from .attention_arguments import Given, Head
from .attention_softmax import Powers, base_of, lowest, total_of, zero
from .attention_tiling import ALONE, BLOCKS, SHARE
from .fragments import TILE
from .words import (
    UNIT,
    WARP,
    barrier,
    clear,
    divided,
    grid,
    held,
    registers,
    shared_words,
    shuffled,
)

SUM_WARPS = 16
"""Of a block that adds up splits."""


class Splits:
    """How many splits a call has.

    All of it is int32 on the device too, which divides 64 bits slowly.

    Attributes:
        heads: of keys, of all batches.
        blocks: of 16 rows of a head.
        share: keys of a split.
        count: of splits, one at least.
    """

    def __init__(self, given: Given) -> None:
        self.heads = given.batch * given.spec.heads
        self.blocks = divided(given.rows, TILE)
        keys, one = tirx.Cast("int32", given.keys), tirx.const(1, "int32")
        others = tirx.max(tirx.Cast("int32", self.heads * self.blocks), one)
        wanted = tirx.max(tirx.truncdiv(tirx.const(BLOCKS, "int32"), others), one)
        fair = tirx.truncdiv(keys + wanted - 1, wanted)
        whole = tirx.truncdiv(fair + (SHARE - 1), tirx.const(SHARE, "int32")) * SHARE
        self.share = tirx.Select(keys <= ALONE, tirx.const(ALONE, "int32"), whole)
        self.count = tirx.max(tirx.truncdiv(keys + self.share - 1, self.share), one)

    def place(self, head: Expr, block: Expr, split: Expr, count: Expr) -> Expr:
        """Where a split leaves its rows in the workspace."""
        return (head * self.blocks + block) * count + split


def emit_sum_of_splits(given: Given, splits: Splits) -> None:
    """The kernel for calls whose keys are split."""
    with only_if(splits.count > 1):
        blocks = (splits.heads, given.rows)
        with grid(blocks, SUM_WARPS) as ((x, y), warp, lane):
            _Row(given, splits, x, y, warp, lane).emit()


def store_result(head: Head, row: Expr, column: Expr, total: Expr, values: Buffer) -> None:
    """Stores four neighbours of a row: what was added up for them, by the row's total."""
    given = head.given
    dtype = given.activation.dtype
    inverse = held(tirx.const(1.0, "float32") / total_of(given.spec, total))
    results = registers(UNIT, dtype)
    for i in range(UNIT):
        store(results, tirx.Cast(dtype, load(values, i) * inverse), i)
    with vectorized(UNIT) as lane:
        store(given.y, load(results, lane), *head.result(row, column + lane))


class _Row:
    """Emits what a thread does for one row."""

    def __init__(
        self, given: Given, splits: Splits, x: Expr, y: Expr, warp: Expr, lane: Expr
    ) -> None:
        self.given, self.splits, self.spec = given, splits, given.spec
        self.x, self.y, self.warp, self.lane = x, y, warp, lane
        self.power = Powers(given.spec)
        self.count = held(tirx.Cast("int64", splits.count))
        self.first = held(splits.place(x, y // TILE, index(0), self.count))
        self.units = given.spec.value_size // UNIT
        self.turns = divided(self.units, WARP)

    def emit(self) -> None:
        size = self.spec.value_size
        peak, total = registers(1, "float32"), registers(1, "float32")
        sums = registers(self.turns * UNIT, "float32")
        store(peak, lowest(), 0)
        with serial(divided(self.count, WARP)) as turn:
            split = held(turn * WARP + self.lane)
            with only_if(split < self.count):
                store(peak, tirx.max(load(peak, 0), self._given(split, size)), 0)
        for mask in (1, 2, 4, 8, 16):
            store(peak, tirx.max(load(peak, 0), shuffled(load(peak, 0), mask)), 0)
        base = held(base_of(load(peak, 0)))
        store(total, zero(), 0)
        clear(sums, 0, self.turns * UNIT)
        with serial(divided(self.count, SUM_WARPS)) as turn:
            split = held(turn * SUM_WARPS + self.warp)
            with only_if(split < self.count):
                factor = held(self.power(self._given(split, size), base))
                store(total, load(total, 0) + self._given(split, size + 1) * factor, 0)
                self._of_units(lambda place, column: self._add(sums, place, split, column, factor))
        self._sum_of_warps(sums, total)

    def _given(self, split: Expr, column: Expr | int) -> Expr:
        """What a split has left in a column of the row."""
        return load(self.given.workspace, self.first + split, self.y % TILE, column)

    def _of_units(self, do: Callable[[int, Expr], None]) -> None:
        """Four neighbouring columns after the other of those that a lane has."""
        for turn in range(self.turns):
            unit = self.lane + turn * WARP
            with only_if(unit < self.units):
                do(turn * UNIT, held(unit * UNIT))

    def _add(self, sums: Buffer, place: int, split: Expr, column: Expr, factor: Expr) -> None:
        values = registers(UNIT, "float32")
        with vectorized(UNIT) as i:
            store(values, self._given(split, column + i), i)
        for i in range(UNIT):
            store(sums, load(sums, place + i) + load(values, i) * factor, place + i)

    def _sum_of_warps(self, sums: Buffer, total: Buffer) -> None:
        size, row = self.spec.value_size, self.spec.value_size + 1
        shared = shared_words(SUM_WARPS * row)

        def put(value: Expr, column: Expr | int) -> None:
            store(shared, tirx.reinterpret("uint32", value), self.warp * row + column)

        def put_unit(place: int, column: Expr) -> None:
            for i in range(UNIT):
                put(load(sums, place + i), column + i)

        def sum_of(column: Expr | int) -> Expr:
            found = registers(1, "float32")
            store(found, zero(), 0)
            for warp in range(SUM_WARPS):
                part = tirx.reinterpret("float32", load(shared, index(warp * row) + column))
                store(found, load(found, 0) + part, 0)
            return load(found, 0)

        self._of_units(put_unit)
        with only_if(self.lane < 1):
            put(load(total, 0), size)
        barrier()
        unit = held(self.warp * WARP + self.lane)
        with only_if(unit < self.units):
            values = registers(UNIT, "float32")
            for i in range(UNIT):
                store(values, sum_of(unit * UNIT + i), i)
            head = self.given.of_head(self.x)
            store_result(head, self.y, unit * UNIT, sum_of(size), values)
