"""`softmax(scale · Q Kᵀ + mask) V` a block of keys at a time, all of it in registers.

    block     a batch, a head of keys and values, rows: queries of all heads that share it
      warp      16 rows and all keys; or, where there are no more rows, a share of the keys
        serial    blocks of keys
          scores = Q Kᵀ, masked; the running maximum and sum of each row
          result = result · correction + exp(scores − maximum) V

The scores of two instructions are the first operand of the next ones as they stand, and the columns
of V are taken in an order in which a lane loads neighbours (FlashAttention-2, arXiv 2307.08691).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import gcd
from typing import Any

from tvm import tirx

from ..attention import Attention, Layout
from ..tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    index,
    load,
    only_if,
    prim_func_of,
    serial,
    store,
)
from .attention_tiling import FEW, GREATEST, AttentionTiling, many
from .dtypes import Activation, activation
from .fragments import EIGHT, SUMS, TILE
from .words import (
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
    shuffled,
)

_LOG2_E = 1.44269502162933349609375  # as a float32
_SIDES = 2


def fits(spec: Attention, dtype: str) -> bool:
    """Whether there is a kernel for it: heads are loaded 16 bytes at a time."""
    known = activation(dtype)
    if known is None:
        return False
    sizes = (spec.size, spec.value_size)
    return all(size % (4 * known.unit) == 0 and size <= GREATEST for size in sizes)


@cache
def attention(spec: Attention, dtype: str) -> PrimFunc:
    """The PrimFunc `(query, key, value, mask if there is one, y)`, all but the mask of one type."""
    known = activation(dtype)
    assert known is not None
    batch, queries, keys = (tirx.Var(name, "int64") for name in ("batch", "queries", "keys"))

    def shape(layout: Layout, heads: int, length: Expr, size: int) -> tuple[Any, ...]:
        if layout == "heads":
            return (batch, heads, length, size)
        return (batch, length, heads, size)

    heads = spec.heads * spec.group
    arguments = [
        Argument("query", shape(spec.query, heads, queries, spec.size), dtype),
        Argument("key", shape(spec.key, spec.heads, keys, spec.size), dtype),
        Argument("value", shape(spec.value, spec.heads, keys, spec.value_size), dtype),
    ]
    if spec.mask is not None:
        full = (batch, heads, queries, keys)
        lengths = tuple(dim if there else 1 for dim, there in zip(full, spec.mask, strict=True))
        arguments.append(Argument("mask", lengths, spec.mask_dtype))
    arguments.append(Argument("y", (batch, queries, heads, spec.value_size), dtype))

    def body(*buffers: Buffer) -> None:
        rows = queries * spec.group

        def emit(tiling: AttentionTiling) -> None:
            blocks = divided(rows, tiling.rows)
            # The blocks of a head one after the other: they read the same keys.
            with grid((blocks * batch * spec.heads,), tiling.warps) as ((x,), warp, lane):
                number = held(x // blocks)
                place = held((x - number * blocks) * tiling.rows)
                first = place if tiling.share_keys else held(place + warp * TILE)
                _Warp(spec, known, tiling, buffers, queries, keys, first, number, warp, lane).emit()

        with only_if(rows <= TILE):
            emit(FEW)
        with only_if(rows > TILE):
            emit(many(max(spec.size, spec.value_size)))

    return prim_func_of(arguments, body)


class _Warp:
    """Emits what a lane does for 16 rows."""

    def __init__(
        self,
        spec: Attention,
        known: Activation,
        tiling: AttentionTiling,
        buffers: Sequence[Buffer],
        queries: Expr,
        keys: Expr,
        first: Expr,
        number: Expr,
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.spec, self.activation, self.tiling = spec, known, tiling
        self.query, self.key, self.value, *mask, self.y = buffers
        self.mask = mask[0] if mask else None
        self.queries, self.keys, self.first = queries, keys, first
        self.batch, self.head = held(number // spec.heads), held(number % spec.heads)
        self.warp, self.lane = warp, lane
        self.row, self.column = held(lane // 4), held(lane % 4)
        self.rows = queries * spec.group
        self.eights = tiling.keys // EIGHT
        self.wide = spec.value_size // EIGHT
        """Neighbouring columns of the result that a lane has."""
        # Of both rows of the lane: whether it is there, its head and its position.
        numbers = [held(first + self.row + EIGHT * side) for side in range(_SIDES)]
        self.there = [row < self.rows for row in numbers]
        members = [held(row // queries) for row in numbers]
        self.heads = [held(self.head * spec.group + member) for member in members]
        self.positions = [
            held(row - member * queries) for row, member in zip(numbers, members, strict=True)
        ]

    def emit(self) -> None:
        words = self.activation.words
        self.q = registers(self.spec.size // TILE * words)
        self.scores = registers(self.eights * SUMS, "float32")
        self.sums = registers(self.wide * SUMS, "float32")
        self.peaks = registers(_SIDES, "float32")
        self.totals = registers(_SIDES, "float32")
        self.a, self.b = registers(words), registers(words // 2)
        self._load_queries()
        clear(self.sums, 0, self.wide * SUMS)
        for side in range(_SIDES):
            store(self.peaks, _lowest(), side)
            store(self.totals, tirx.const(0.0, "float32"), side)
        blocks = divided(self.keys, self.tiling.keys)
        if self.tiling.share_keys:
            with serial(divided(blocks, self.tiling.warps)) as turn:
                number = held(turn * self.tiling.warps + self.warp)
                with only_if(number < blocks):
                    self._block(held(number * self.tiling.keys))
            self._merge()
        else:
            with serial(self._seen(blocks)) as number:
                self._block(held(number * self.tiling.keys))
            self._store()

    def _seen(self, blocks: Expr) -> Expr:
        """Blocks of keys that any of the warp's rows sees."""
        if not self.spec.causal:
            return blocks
        end = held(tirx.min(self.first + (TILE - 1), self.rows - 1))
        member = held(end // self.queries)
        # Rows of two heads have the last query of the first of them among them.
        alone = tirx.EQ(self.first // self.queries, member)
        last = tirx.Select(alone, end - member * self.queries, self.queries - 1)
        seen = last + 1 + self.keys - self.queries
        return held(tirx.min(blocks, divided(tirx.max(seen, index(0)), self.tiling.keys)))

    def _load_queries(self) -> None:
        """A lane's quarter of two rows, as first operands."""
        words, unit = self.activation.words, self.activation.unit
        loaded = registers(_SIDES * 4)
        for number in range(self.spec.size // 4 // unit):
            for side in range(_SIDES):
                column = self.column * (self.spec.size // 4) + number * unit
                at = self._at(
                    self.query, self.spec.query, self.heads[side], self.positions[side], column
                )
                with only_if(self.there[side]):
                    call("undense_load_16", address(loaded, side * 4), at)
                with only_if(tirx.Not(self.there[side])):
                    clear(loaded, side * 4, 4)
            for inner in range(unit // 4):
                tile = number * (unit // 4) + inner
                for pair in range(2):
                    for side in range(_SIDES):
                        for i in range(words // 4):
                            source = side * 4 + (inner * 2 + pair) * (words // 4) + i
                            place = tile * words + (pair * 2 + side) * (words // 4) + i
                            store(self.q, load(loaded, source), place)

    def _at(self, buffer: Buffer, layout: Layout, head: Expr, position: Expr, column: Any) -> Expr:
        if layout == "heads":
            return address(buffer, self.batch, head, position, column)
        return address(buffer, self.batch, position, head, column)

    def _block(self, start: Expr) -> None:
        """Scores of a block of keys, and their part of the result."""
        self._multiply_keys(start)
        for side in range(_SIDES):
            self._weigh(side, start)
        self._multiply_values(start)

    def _key(self, start: Expr, number: Expr | int) -> Expr:
        """A key that is there: what stands in for others counts for nothing."""
        return tirx.min(start + number, self.keys - 1)

    def _multiply_keys(self, start: Expr) -> None:
        words, unit = self.activation.words, self.activation.unit
        clear(self.scores, 0, self.eights * SUMS)
        units = self.spec.size // 4 // unit
        loaded = registers(units * 4)
        for eight in range(self.eights):
            key = held(self._key(start, self.row + eight * EIGHT))
            for number in range(units):
                column = self.column * (self.spec.size // 4) + number * unit
                at = self._at(self.key, self.spec.key, self.head, key, column)
                call("undense_load_16", address(loaded, number * 4), at)
            for tile in range(self.spec.size // TILE):
                call(
                    f"undense_mma_{self.activation.short}",
                    address(self.scores, eight * SUMS),
                    address(self.q, tile * words),
                    address(loaded, tile * (words // 2)),
                )

    def _weigh(self, side: int, start: Expr) -> None:
        """Scores of a row to exp(score − maximum), and what was summed up to the new maximum."""
        peak, total = registers(1, "float32"), registers(1, "float32")
        store(peak, load(self.peaks, side), 0)
        for eight in range(self.eights):
            for i in range(2):
                place = eight * SUMS + 2 * side + i
                key = start + eight * EIGHT + self.column * 2 + i
                score = self._masked(load(self.scores, place), side, key)
                store(self.scores, score, place)
                store(peak, tirx.max(load(peak, 0), load(self.scores, place)), 0)
        for mask in (1, 2):
            store(peak, tirx.max(load(peak, 0), shuffled(load(peak, 0), mask)), 0)
        # A row without any key has the lowest number as its maximum, from which nothing is taken.
        base = held(tirx.Select(load(peak, 0) > _lowest(), load(peak, 0), _zero()))
        correction = held(_exp(load(self.peaks, side) - base))
        store(self.peaks, load(peak, 0), side)
        store(total, _zero(), 0)
        for eight in range(self.eights):
            for i in range(2):
                place = eight * SUMS + 2 * side + i
                store(self.scores, _exp(load(self.scores, place) - base), place)
                store(total, load(total, 0) + load(self.scores, place), 0)
        for mask in (1, 2):
            store(total, load(total, 0) + shuffled(load(total, 0), mask), 0)
        store(self.totals, load(self.totals, side) * correction + load(total, 0), side)
        for column in range(self.wide):
            for i in range(2):
                place = column * SUMS + 2 * side + i
                store(self.sums, load(self.sums, place) * correction, place)

    def _masked(self, score: Expr, side: int, key: Expr) -> Expr:
        """A score with its mask; −∞ for a key that is masked or not there.

        Not yet an exponent of two: the lowest number, with which exports mask, would be −∞.
        """
        value = score * tirx.const(self.spec.scale, "float32")
        there = key < self.keys
        if self.spec.causal:
            there = key <= self.positions[side] + (self.keys - self.queries)
        if self.mask is None or self.spec.mask is None:
            return tirx.Select(there, value, _lowest())
        axes = (self.batch, self.heads[side], self.positions[side], tirx.min(key, self.keys - 1))
        # Rows that are not there have no place in the mask either.
        last = (None, self.spec.heads * self.spec.group - 1, self.queries - 1, None)
        at = [
            index(0) if not has else axis if most is None else tirx.min(axis, index(most))
            for axis, has, most in zip(axes, self.spec.mask, last, strict=True)
        ]
        given = load(self.mask, *at)
        if self.spec.mask_dtype == "bool":
            return tirx.Select(tirx.all(there, given), value, _lowest())
        value = value + tirx.Cast("float32", given)
        return tirx.Select(there, value, _lowest())

    def _multiply_values(self, start: Expr) -> None:
        """The scores of 16 keys at a time are a first operand; pairs of values the second."""
        short = self.activation.short
        together = gcd(self.wide, self.activation.unit)
        loads = together * self.activation.bytes // 4
        loaded = registers(4 * loads)
        for block in range(self.tiling.keys // TILE):
            scores = address(self.scores, block * 2 * SUMS)
            call(f"undense_scores_{short}", address(self.a, 0), scores)
            keys = [
                held(self._key(start, self.column * 2 + (block * TILE + offset)))
                for offset in (0, 1, EIGHT, EIGHT + 1)
            ]
            for first in range(0, self.wide, together):
                for number, key in enumerate(keys):
                    column = self.row * self.wide + first
                    at = self._at(self.value, self.spec.value, self.head, key, column)
                    call(f"undense_load_{4 * loads}", address(loaded, number * loads), at)
                for i in range(together):
                    b, values = address(self.b, 0), address(loaded, 0)
                    call(f"undense_column_{short}", b, values, loads, i)
                    sums = address(self.sums, (first + i) * SUMS)
                    call(f"undense_mma_{short}", sums, address(self.a, 0), b)

    def _merge(self) -> None:
        """Adds up what the warps have for the same rows, each to the greatest maximum of all."""
        lanes, warps = WARP, self.tiling.warps
        count = self.wide * SUMS
        stride = count + 2 * _SIDES
        shared = shared_words(warps * stride * lanes)

        def place(warp: Expr | int, item: int) -> Expr:
            return (warp * stride + item) * lanes + self.lane

        def put(value: Expr, item: int) -> None:
            store(shared, tirx.reinterpret("uint32", value), place(self.warp, item))

        def get(warp: int, item: int) -> Expr:
            return tirx.reinterpret("float32", load(shared, place(warp, item)))

        for i in range(count):
            put(load(self.sums, i), i)
        for side in range(_SIDES):
            put(load(self.peaks, side), count + side)
            put(load(self.totals, side), count + _SIDES + side)
        barrier()
        with only_if(self.warp < 1):
            for side in range(_SIDES):
                peak, total = registers(1, "float32"), registers(1, "float32")
                store(peak, _lowest(), 0)
                for warp in range(warps):
                    store(peak, tirx.max(load(peak, 0), get(warp, count + side)), 0)
                base = held(tirx.Select(load(peak, 0) > _lowest(), load(peak, 0), _zero()))
                store(total, _zero(), 0)
                for column in range(self.wide):
                    for i in range(2):
                        store(self.sums, _zero(), column * SUMS + 2 * side + i)
                for warp in range(warps):
                    factor = held(_exp(get(warp, count + side) - base))
                    added = get(warp, count + _SIDES + side) * factor
                    store(total, load(total, 0) + added, 0)
                    for column in range(self.wide):
                        for i in range(2):
                            at = column * SUMS + 2 * side + i
                            store(self.sums, load(self.sums, at) + get(warp, at) * factor, at)
                store(self.totals, load(total, 0), side)
            self._store()

    def _store(self) -> None:
        dtype = self.activation.dtype
        for side in range(_SIDES):
            total = load(self.totals, side)
            if self.spec.allow_empty:
                one = tirx.const(1.0, "float32")
                total = tirx.Select(tirx.EQ(total, _zero()), one, total)
            inverse = held(tirx.const(1.0, "float32") / total)
            with only_if(self.there[side]):
                for i in range(2):
                    for column in range(self.wide):
                        value = load(self.sums, column * SUMS + 2 * side + i) * inverse
                        at = (self.column * 2 + i) * self.wide + column
                        where = (self.batch, self.positions[side], self.heads[side], at)
                        store(self.y, tirx.Cast(dtype, value), *where)


def _lowest() -> Expr:
    return tirx.const(float("-inf"), "float32")


def _zero() -> Expr:
    return tirx.const(0.0, "float32")


def _exp(value: Expr) -> Expr:
    return tirx.call_pure_extern("float32", "exp2f", value * tirx.const(_LOG2_E, "float32"))
