"""`softmax(scale · Q Kᵀ + mask) V` a block of queries and a block of keys at a time.

    parallel  batch, head of keys and values, block of rows (a query of one of the heads that share)
      serial    blocks of keys
        scores = Q Kᵀ in registers, masked
        the running maximum and sum of each row, and what was added up before rescaled to them
        result += exp(scores − maximum) V in registers

No score ever leaves the cache (online softmax, arXiv 2205.14135, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tvm import tirx

from .blocks import LANES
from .gemm import FloatTiling, product
from .mathematics import exp
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    broadcast,
    fold,
    index,
    load,
    local,
    only_if,
    parallel,
    prim_func_of,
    ramp,
    serial,
    store,
    vectorized,
    zeros,
)

Layout = Literal["heads", "rows"]
"""`[batch, heads, length, size]` or `[batch, length, heads, size]`."""

_ROWS, _KEYS = 32, 64
"""Of a block: its queries, keys, scores and results fill a second-level cache to a tenth."""


@dataclass(frozen=True)
class Attention:
    """What one kernel computes; lengths and batch stay symbolic.

    Attributes:
        size: of a head, a multiple of 16.
        value_size: of a head of the values, a multiple of 16.
        heads: of keys and values.
        group: heads of queries that share one of them.
        scale: of the products.
        query, key, value: their layouts; the result is `[batch, length, heads, size]`.
        mask: for each of the four axes of the scores whether the mask has it, else it has length
            one there; None without a mask.
        mask_dtype: `bool` where true is kept, or `float32` to be added.
        allow_empty: a row of nothing but −∞ gives zeros, instead of NaN.
        causal: the queries are those of the last keys, and see none after their own; for GPUs,
            where kernels leave out what is never seen.
    """

    size: int
    value_size: int
    heads: int
    group: int
    scale: float
    query: Layout
    key: Layout
    value: Layout
    mask: tuple[bool, bool, bool, bool] | None = None
    mask_dtype: str = "float32"
    allow_empty: bool = False
    causal: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is a kernel for it."""
        return self.size % LANES == 0 and self.value_size % LANES == 0


@cache
def attention(spec: Attention, tiling: FloatTiling) -> PrimFunc:
    """The PrimFunc `(query, key, value, mask if there is one, y)`."""
    batch, queries, keys = (tirx.Var(name, "int64") for name in ("batch", "queries", "keys"))

    def shape(layout: Layout, heads: int, length: Expr, size: int) -> tuple[Any, ...]:
        if layout == "heads":
            return (batch, heads, length, size)
        return (batch, length, heads, size)

    heads = spec.heads * spec.group
    arguments = [
        Argument("query", shape(spec.query, heads, queries, spec.size), "float32"),
        Argument("key", shape(spec.key, spec.heads, keys, spec.size), "float32"),
        Argument("value", shape(spec.value, spec.heads, keys, spec.value_size), "float32"),
    ]
    if spec.mask is not None:
        full = (batch, heads, queries, keys)
        lengths = tuple(dim if there else 1 for dim, there in zip(full, spec.mask, strict=True))
        arguments.append(Argument("mask", lengths, spec.mask_dtype))
    arguments.append(Argument("y", (batch, queries, heads, spec.value_size), "float32"))

    def body(*buffers: Buffer) -> None:
        rows = bind(queries * spec.group)
        blocks = bind(tirx.floordiv(rows + (_ROWS - 1), index(_ROWS)))
        with parallel(batch * spec.heads * blocks) as task:
            _Block(spec, tiling, buffers, queries, keys, rows, blocks, task).emit()

    return prim_func_of(arguments, body)


class _Block:
    """Emits what one task does."""

    def __init__(
        self,
        spec: Attention,
        tiling: FloatTiling,
        buffers: Sequence[Buffer],
        queries: Expr,
        keys: Expr,
        rows: Expr,
        blocks: Expr,
        task: Expr,
    ) -> None:
        self.spec, self.tiling, self.queries, self.keys = spec, tiling, queries, keys
        self.query, self.key, self.value, *mask, self.y = buffers
        self.mask = mask[0] if mask else None
        self.batch = bind(tirx.floordiv(task, blocks * spec.heads))
        rest = bind(task - self.batch * blocks * spec.heads)
        self.head = bind(tirx.floordiv(rest, blocks))
        self.first = bind((rest - self.head * blocks) * _ROWS)
        self.height = bind(tirx.min(index(_ROWS), rows - self.first))

    def emit(self) -> None:
        spec = self.spec
        scaled = local(_ROWS * spec.size, "float32")
        transposed = local(spec.size * _KEYS, "float32")
        scores = local(_ROWS * _KEYS, "float32")
        sums = local(_ROWS * spec.value_size, "float32")
        peaks, totals = local(_ROWS, "float32"), local(_ROWS, "float32")
        with serial(self.height) as row:
            self._start(row, scaled, sums, peaks, totals)
        with serial(tirx.floordiv(self.keys + (_KEYS - 1), index(_KEYS))) as number:
            start = bind(number * _KEYS)
            length = bind(tirx.min(index(_KEYS), self.keys - start))
            self._transpose(transposed, start, length)

            def put_score(row: Expr, panel: int, value: Any) -> None:
                with vectorized(LANES) as lane:
                    store(scores, value(lane), row * _KEYS + panel * LANES + lane)

            product(
                self.tiling,
                self.height,
                _KEYS // LANES,
                spec.size,
                lambda row, k: load(scaled, row * spec.size + k),
                lambda panel, k: load(transposed, ramp(k * _KEYS + panel * LANES, LANES)),
                put_score,
            )
            with serial(self.height) as row:
                self._weigh(row, start, scores, sums, peaks, totals)

            def put_sum(row: Expr, panel: int, value: Any) -> None:
                with vectorized(LANES) as lane:
                    where = row * spec.value_size + panel * LANES + lane
                    store(sums, load(sums, where) + value(lane), where)

            product(
                self.tiling,
                self.height,
                spec.value_size // LANES,
                length,
                lambda row, k: load(scores, row * _KEYS + k),
                lambda panel, k: load(
                    self.value,
                    *self._place(spec.value, start + k, ramp(panel * LANES, LANES)),
                ),
                put_sum,
            )
        with serial(self.height) as row:
            self._finish(row, sums, totals)

    def _place(self, layout: Layout, position: Expr, column: Expr) -> tuple[Expr, ...]:
        if layout == "heads":
            return (self.batch, self.head, position, column)
        return (self.batch, position, self.head, column)

    def _row(self, row: Expr) -> tuple[Expr, Expr]:
        """Head and position of a row of the block."""
        number = bind(self.first + row)
        member = bind(tirx.floordiv(number, self.queries))
        return self.head * self.spec.group + member, number - member * self.queries

    def _start(
        self, row: Expr, scaled: Buffer, sums: Buffer, peaks: Buffer, totals: Buffer
    ) -> None:
        spec = self.spec
        head, position = self._row(row)
        for column in range(0, spec.size, LANES):
            lanes = ramp(column, LANES)
            where = (self.batch, head, position, lanes)
            if spec.query == "rows":
                where = (self.batch, position, head, lanes)
            scale = broadcast(tirx.const(spec.scale, "float32"), LANES)
            store(scaled, load(self.query, *where) * scale, ramp(row * spec.size + column, LANES))
        for column in range(0, spec.value_size, LANES):
            where_sum = ramp(row * spec.value_size + column, LANES)
            store(sums, zeros("float32", LANES), where_sum)
        store(peaks, tirx.min_value("float32"), row)
        store(totals, tirx.const(0.0, "float32"), row)

    def _transpose(self, transposed: Buffer, start: Expr, length: Expr) -> None:
        """Keys in lanes; what lies behind the last one is zero."""
        spec = self.spec
        with only_if(length < _KEYS), serial(spec.size * _KEYS // LANES) as i:
            store(transposed, zeros("float32", LANES), ramp(i * LANES, LANES))
        with serial(length) as key, serial(spec.size // LANES) as panel:
            for lane in range(LANES):
                column = panel * LANES + lane
                value = load(self.key, *self._place(spec.key, start + key, column))
                store(transposed, value, column * _KEYS + key)

    def _weigh(
        self,
        row: Expr,
        start: Expr,
        scores: Buffer,
        sums: Buffer,
        peaks: Buffer,
        totals: Buffer,
    ) -> None:
        """Scores of a row to exp(score − maximum), and the running sums to the new maximum."""
        spec = self.spec
        self._mask(row, start, scores)
        first = row * _KEYS
        panels = range(0, _KEYS, LANES)
        peak, total = local(LANES, "float32"), local(LANES, "float32")
        old, factor = local(1, "float32"), local(1, "float32")
        lanes = ramp(0, LANES)
        store(old, load(peaks, row), 0)
        store(peak, broadcast(load(old, 0), LANES), lanes)
        for panel in panels:
            found = load(scores, ramp(first + panel, LANES))
            store(peak, tirx.max(load(peak, lanes), found), lanes)
        fold(peak, tirx.max)
        store(peaks, load(peak, 0), row)
        store(total, zeros("float32", LANES), lanes)
        for panel in panels:
            where = ramp(first + panel, LANES)
            with vectorized(LANES) as lane:
                place = first + panel + lane
                store(scores, exp(load(scores, place) - load(peak, 0)), place)
            store(total, load(total, lanes) + load(scores, where), lanes)
        fold(total, lambda one, other: one + other)
        store(factor, exp(load(old, 0) - load(peak, 0)), 0)
        store(totals, load(totals, row) * load(factor, 0) + load(total, 0), row)
        for column in range(0, spec.value_size, LANES):
            where = ramp(row * spec.value_size + column, LANES)
            store(sums, load(sums, where) * broadcast(load(factor, 0), LANES), where)

    def _mask(self, row: Expr, start: Expr, scores: Buffer) -> None:
        """Adds the mask; keys behind the last one get −∞."""
        head, position = self._row(row)
        lowest = tirx.const(float("-inf"), "float32")

        def masked(key: Expr) -> None:
            where = row * _KEYS + key
            score = load(scores, where)
            if self.mask is not None and self.spec.mask is not None:
                axes = (self.batch, head, position, start + key)
                at = [
                    axis if there else 0 for axis, there in zip(axes, self.spec.mask, strict=True)
                ]
                given = load(self.mask, *at)
                if self.spec.mask_dtype == "bool":
                    score = tirx.Select(given, score, lowest)
                else:
                    score = score + given
            store(scores, score, where)

        for panel in range(0, _KEYS, LANES):
            missing = bind(self.keys - start - panel)
            if self.mask is not None:
                with only_if(missing >= LANES), vectorized(LANES) as lane:
                    masked(panel + lane)
            with only_if(missing < LANES):
                if self.mask is not None:
                    with serial(tirx.max(missing, index(0))) as lane:
                        masked(panel + lane)
                with serial(LANES - tirx.max(missing, index(0))) as rest:
                    where = row * _KEYS + panel + tirx.max(missing, index(0)) + rest
                    store(scores, lowest, where)

    def _finish(self, row: Expr, sums: Buffer, totals: Buffer) -> None:
        spec = self.spec
        head, position = self._row(row)
        total = load(totals, row)
        if spec.allow_empty:
            one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
            total = tirx.Select(tirx.EQ(total, zero), one, total)
        inverse = local(1, "float32")
        store(inverse, tirx.const(1.0, "float32") / total, 0)
        for column in range(0, spec.value_size, LANES):
            value = load(sums, ramp(row * spec.value_size + column, LANES))
            where = (self.batch, position, head, ramp(column, LANES))
            store(self.y, value * broadcast(load(inverse, 0), LANES), *where)
