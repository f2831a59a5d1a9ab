"""Keys and values in turns through a ring in shared memory, copied ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from tvm import tirx

from ..tir import Buffer, Expr, index, only_if, serial
from .attention_arguments import Head
from .attention_tiling import AttentionTiling, SharedRows
from .words import UNIT, address, call, held

Start = Callable[[Expr], Expr]
"""The first key of a tile."""

Use = Callable[[Expr, Expr], None]
"""Takes where a tile lies in shared memory, and its first key."""


Source = Callable[[Expr, Expr], tuple[Expr, Expr | None]]
"""Where a row lies from a unit on, and whether it is there, where it may not be: it is zeros."""


class Copier:
    """Threads that copy rows together.

    Attributes:
        count: of them.
        thread: the number of this one.
        meet: makes them wait for each other.
    """

    def __init__(self, shared: Buffer, count: int, thread: Expr, meet: Callable[[], None]) -> None:
        self.shared, self.count, self.thread, self.meet = shared, count, thread, meet

    def rows(
        self,
        place: Expr,
        row_words: int,
        rows: int,
        units: int,
        at: Source,
    ) -> None:
        """Begins to copy `rows` rows of 16-byte units.

        Args:
            place: of the first one in shared memory, in words.
            row_words: from one to the next.
            rows: how many.
            units: of a row.
            at: where they come from.
        """
        # A thread has the same units of every row, so that places differ by known numbers.
        across = min(units, self.count)
        at_once = self.count // across
        first, unit = held(self.thread // across), held(self.thread % across)
        idle = self.count % across
        with only_if(first < at_once) if idle else nullcontext():
            for turn in range(-(-rows // at_once)):
                row = first + turn * at_once
                for start in range(0, units, across):
                    spare = (turn + 1) * at_once > rows, start + across > units
                    with (
                        only_if(row < rows) if spare[0] else nullcontext(),
                        only_if(unit + start < units) if spare[1] else nullcontext(),
                    ):
                        to = place + row * row_words + (unit + start) * UNIT
                        self._copy(to, *at(row, unit + start))

    def _copy(self, to: Expr, source: Expr, there: Expr | None) -> None:
        sizes = (tirx.const(16, "int32"), tirx.const(0, "int32"))
        amount = sizes[0] if there is None else tirx.if_then_else(there, *sizes)
        call("undense_copy_async", address(self.shared, to), source, amount)


class Ring:
    """Tiles of keys, each before its values, of one head.

    Args:
        head: that they are of.
        tiling: with the length of tiles and the number of stages.
        rows: how they lie in shared memory.
        first: word where this ring begins.
        copier: threads that fill it, which are those that read it.
    """

    def __init__(
        self, head: Head, tiling: AttentionTiling, rows: SharedRows, first: Expr, copier: Copier
    ) -> None:
        self._head, self._tiling, self._rows = head, tiling, rows
        self._first, self._copier = first, copier

    @property
    def ahead(self) -> int:
        """Tiles that are under way while one is used."""
        return self._tiling.stages - 1

    def fill(self, tiles: Expr, start: Start) -> None:
        """Begins to copy the first tiles; what was copied before is another group."""
        call("undense_copy_commit")
        for item in range(self.ahead):
            turn, part = divmod(item, 2)
            with only_if(index(turn) < tiles):
                self._copy(index(item), start(index(turn)), part)
            call("undense_copy_commit")

    def wait_for_older(self) -> None:
        """Waits for this thread's copies from before `fill`."""
        call("undense_copy_wait", self.ahead)

    def walk(self, tiles: Expr, start: Start, keys: Use, values: Use) -> None:
        """Goes through all tiles.

        Args:
            tiles: how many.
            start: of each.
            keys: what is done with keys.
            values: what is done with the values of the same keys afterwards.
        """
        with serial(tiles) as turn:
            for part, use in enumerate((keys, values)):
                call("undense_copy_wait", self.ahead - 1)
                self._copier.meet()
                later, later_part = divmod(part + self.ahead, 2)
                with only_if(turn + later < tiles):
                    stage = self._stage(turn, part + self.ahead)
                    self._copy(stage, start(turn + later), later_part)
                call("undense_copy_commit")
                use(held(self._place(self._stage(turn, part))), held(start(turn)))

    def _stage(self, turn: Expr, part: int) -> Expr:
        """That of the part after the keys of a turn."""
        stages = self._tiling.stages
        if 2 % stages == 0:
            return index(part % stages)
        return (turn * 2 + part) % stages

    def _place(self, stage: Expr) -> Expr:
        return self._first + stage * self._rows.slot

    def _copy(self, stage: Expr, start: Expr, part: int) -> None:
        """Begins to copy keys, or values; those behind the last key are zeros."""
        head, spec = self._head, self._head.spec
        unit = head.given.activation.unit
        size, row_words = (
            (spec.value_size, self._rows.value) if part else (spec.size, self._rows.key)
        )
        there = head.value_at if part else head.key_at
        last = head.given.keys - 1
        first, place = held(start), held(self._place(stage))
        rows, units = self._tiling.keys, size // unit

        def at(row: Expr, number: Expr) -> tuple[Expr, None]:
            return there(first + row, number * unit), None

        def checked(row: Expr, number: Expr) -> tuple[Expr, Expr]:
            key = held(first + row)
            return there(tirx.min(key, last), number * unit), key <= last

        whole = first + rows <= head.given.keys
        with only_if(whole):
            self._copier.rows(place, row_words, rows, units, at)
        with only_if(tirx.Not(whole)):
            self._copier.rows(place, row_words, rows, units, checked)
