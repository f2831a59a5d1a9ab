"""Online softmax of the scores that a lane has: masks, maxima, weights and their totals."""

from __future__ import annotations

from tvm import tirx

from ..attention import Attention
from ..tir import Buffer, Expr, load, only_if, store
from .attention_arguments import Head
from .attention_tiling import AttentionTiling
from .fragments import EIGHT, SUMS
from .words import held, registers, shuffled, unrolled

SIDES = 2
"""Rows of a lane in a tile: g and g + 8."""

_LOG2_E = 1.44269502162933349609375  # as a float32


def lowest() -> Expr:
    """The maximum of no scores."""
    return tirx.const(float("-inf"), "float32")


def zero() -> Expr:
    """0, a float32."""
    return tirx.const(0.0, "float32")


def base_of(peak: Expr) -> Expr:
    """What is taken from scores: their maximum, or nothing where all are −∞."""
    return tirx.Select(peak > lowest(), peak, zero())


def total_of(spec: Attention, total: Expr) -> Expr:
    """What results are divided by."""
    if not spec.allow_empty:
        return total
    return tirx.Select(tirx.EQ(total, zero()), tirx.const(1.0, "float32"), total)


class Powers:
    """`exp(score − maximum)` as powers of two.

    Scores stay products, whose scale and log₂ e are one factor; but a mask that is added is not
    scaled, and the lowest number, with which exports mask, would not survive log₂ e.
    """

    def __init__(self, spec: Attention) -> None:
        added = spec.mask is not None and spec.mask_dtype != "bool"
        self.scaled = added or spec.scale <= 0
        self._unit = tirx.const(_LOG2_E * (1.0 if self.scaled else spec.scale), "float32")

    def __call__(self, score: Expr, base: Expr) -> Expr:
        """Of a score, or of a maximum; 0 where it is −∞."""
        exponent = (score - base) * self._unit
        if not self.scaled:
            exponent = score * self._unit - base * self._unit
        return tirx.call_pure_extern("float32", "undense_exp2", exponent)


class Softmax:
    """The running maximum and total of each row of a lane, over tiles of keys.

    Args:
        head: of the keys.
        tiling: with the tiles of rows and the keys of a tile.
        first: number of the warp's first row.
        lane: whose scores they are: rows g and g + 8, keys 2 t and 2 t + 1 of each eight.
    """

    def __init__(self, head: Head, tiling: AttentionTiling, first: Expr, lane: Expr) -> None:
        self.spec, self.tiling, self.head = head.spec, tiling, head
        self.power = Powers(head.spec)
        self.column = held(lane % 4)
        given = head.given
        self.later = held(given.keys - given.queries)
        """Keys before that of the first query, where causal."""
        count = tiling.tiles * SIDES
        row = held(first + lane // 4)
        # Rows that are not there have no place in a mask.
        self.rows = [held(tirx.min(row + EIGHT * i, given.rows - 1)) for i in range(count)]
        self.seen_by_all = self._seen(first)
        self.limits = [held(tirx.Cast("int32", self._seen(row))) for row in self.rows]
        self.peaks, self.totals = registers(count, "float32"), registers(count, "float32")
        for i in range(count):
            store(self.peaks, lowest(), i)
            store(self.totals, zero(), i)

    def _seen(self, row: Expr) -> Expr:
        """Keys that a row sees."""
        keys = self.head.given.keys
        return held(self.head.position(row) + 1 + self.later) if self.spec.causal else keys

    def mask(self, scores: Buffer, start: Expr) -> None:
        """Scales scores and masks them; keys that are masked or not there have −∞."""
        if self.spec.mask is not None:
            self._mask_by(scores, start)
            return
        if self.power.scaled:
            with unrolled(self.tiling.tiles * self.tiling.eights * SUMS) as i:
                store(scores, load(scores, i) * tirx.const(self.spec.scale, "float32"), i)
        with only_if(start + self.tiling.keys > self.seen_by_all):
            self._mask_by(scores, start)

    def _mask_by(self, scores: Buffer, start: Expr) -> None:
        first = held(tirx.Cast("int32", start + self.column * 2))
        for number in range(self.tiling.tiles * SIDES):
            with unrolled(self.tiling.eights) as eight:
                for i in range(2):
                    key = first + tirx.Cast("int32", eight * EIGHT) + i
                    place = self._place(number, eight) + i
                    store(scores, self._masked(load(scores, place), number, key), place)

    def _masked(self, score: Expr, number: int, key: Expr) -> Expr:
        spec = self.spec
        there = key < self.limits[number]
        if spec.mask is None:
            return tirx.Select(there, score, lowest())
        last = self.head.given.keys - 1
        given = self.head.mask_of(self.rows[number], tirx.min(tirx.Cast("int64", key), last))
        if self.power.scaled:
            score = score * tirx.const(spec.scale, "float32")
        if spec.mask_dtype == "bool":
            return tirx.Select(tirx.all(there, given), score, lowest())
        return tirx.Select(there, score + tirx.Cast("float32", given), lowest())

    def weigh(self, scores: Buffer, sums: Buffer) -> None:
        """Scores to weights, and what was summed up to the new maximum."""
        for number in range(self.tiling.tiles * SIDES):
            self._weigh(scores, sums, number)

    def _weigh(self, scores: Buffer, sums: Buffer, number: int) -> None:
        peak = registers(1, "float32")
        store(peak, load(self.peaks, number), 0)
        with unrolled(self.tiling.eights) as eight:
            for i in range(2):
                score = load(scores, self._place(number, eight) + i)
                store(peak, tirx.max(load(peak, 0), score), 0)
        for mask in (1, 2):
            store(peak, tirx.max(load(peak, 0), shuffled(load(peak, 0), mask)), 0)
        base = held(base_of(load(peak, 0)))
        correction = held(self.power(load(self.peaks, number), base))
        store(self.peaks, load(peak, 0), number)
        # A lane's part of the total; those of a row are added up in the end.
        store(self.totals, load(self.totals, number) * correction, number)
        with unrolled(self.tiling.eights) as eight:
            for i in range(2):
                place = self._place(number, eight) + i
                store(scores, self.power(load(scores, place), base), place)
                store(self.totals, load(self.totals, number) + load(scores, place), number)
        wide = self.spec.value_size // EIGHT
        tile, side = divmod(number, SIDES)
        with unrolled(wide) as column:
            for i in range(2):
                place = (tile * wide + column) * SUMS + 2 * side + i
                store(sums, load(sums, place) * correction, place)

    def finish(self) -> None:
        """Totals of lanes to those of rows."""
        for number in range(self.tiling.tiles * SIDES):
            for mask in (1, 2):
                total = load(self.totals, number)
                store(self.totals, total + shuffled(total, mask), number)

    def _place(self, number: int, eight: Expr) -> Expr:
        tile, side = divmod(number, SIDES)
        return (tile * self.tiling.eights + eight) * SUMS + 2 * side
