"""`(x − mean) / √(variance + ε)` and `x / √(mean square + ε)` of each row, in float32.

block     a row, which its threads keep in registers: it is read once
sums over a warp by shuffles, over the warps in shared memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from tvm import tirx

from ..base import Output, Step
from ..finish import Finish
from ..tir import Argument, Buffer, Expr, PrimFunc, load, only_if, prim_func, store, vectorized
from .words import WARP, barrier, clear, divided, grid, held, registers, shared_words, summed_over

_MOST_WARPS = 16
"""Of a block: each takes as much of a row as the others."""


def norm_step(features: int, epsilon: float, dtype: str, *, centered: bool) -> Step:
    """`x -> y`, LayerNorm if centered and RMSNorm if not, both without scale and bias.

    y is float32, whatever x is: what follows is done before it is rounded and stored.
    """
    make = partial(norm, features, epsilon, dtype, centered)
    name = "layer_norm" if centered else "rms_norm"
    return Step(name, make(), ("x",), (Output("y", features, "float32"),), make)


@cache
def norm(
    features: int, epsilon: float, dtype: str, centered: bool, finish: Finish | None = None
) -> PrimFunc:
    """The PrimFunc `(x, *finish, y)`."""

    def arguments(rows: Expr) -> Sequence[Argument]:
        further = [] if finish is None else finish.arguments(rows)
        stored = "float32" if finish is None else finish.dtype
        return [
            Argument("x", (rows, features), dtype),
            *further,
            Argument("y", (rows, features), stored),
        ]

    def body(rows: Expr, x: Buffer, *stored: Buffer) -> None:
        _Row(features, epsilon, centered, finish, x, stored).emit(rows)

    return prim_func(arguments, body)


class _Row:
    """Emits what a block does for a row."""

    def __init__(
        self,
        features: int,
        epsilon: float,
        centered: bool,
        finish: Finish | None,
        x: Buffer,
        stored: Sequence[Buffer],
    ) -> None:
        self.features, self.epsilon, self.centered = features, epsilon, centered
        self.finish, self.x, self.stored = finish, x, stored
        self.together = next(n for n in (8, 4, 2, 1) if features % n == 0)
        self.warps = min(divided(features, WARP * self.together), _MOST_WARPS)
        self.turns = divided(features, WARP * self.together * self.warps)

    def emit(self, rows: Expr) -> None:
        with grid((rows,), self.warps) as ((row,), warp, lane):
            self.row, self.warp, self.lane = row, warp, lane
            self.thread = held(warp * WARP + lane)
            self.values = registers(self.turns * self.together, "float32")
            self.shared = shared_words(self.warps)
            clear(self.values, 0, self.turns * self.together)
            for turn in range(self.turns):
                self._load(turn)
            count = tirx.const(float(self.features), "float32")
            if self.centered:
                center = held(self._sum(lambda value: value) / count)
                for turn in range(self.turns):
                    with self._there(turn):
                        for i in range(self.together):
                            place = turn * self.together + i
                            store(self.values, load(self.values, place) - center, place)
                if self.warps > 1:
                    barrier()  # until every thread has read the first sums
            square = self._sum(lambda value: value * value) / count
            epsilon = tirx.const(self.epsilon, "float32")
            factor = held(tirx.const(1.0, "float32") / tirx.sqrt(square + epsilon))
            for turn in range(self.turns):
                with self._there(turn):
                    self._store(turn, factor)

    def _column(self, turn: int) -> Expr:
        return (self.thread + turn * self.warps * WARP) * self.together

    def _there(self, turn: int) -> Any:
        return only_if(self._column(turn) < self.features)

    def _load(self, turn: int) -> None:
        with self._there(turn):
            given = registers(self.together, str(self.x.dtype))
            with vectorized(self.together) as lane:
                store(given, load(self.x, self.row, self._column(turn) + lane), lane)
            for i in range(self.together):
                value = tirx.Cast("float32", load(given, i))
                store(self.values, value, turn * self.together + i)

    def _sum(self, term: Callable[[Expr], Expr]) -> Expr:
        """The sum over the row, in every thread."""
        total = registers(1, "float32")
        store(total, tirx.const(0.0, "float32"), 0)
        for place in range(self.turns * self.together):
            store(total, load(total, 0) + term(load(self.values, place)), 0)
        summed_over(total, 0, WARP)
        if self.warps == 1:
            return load(total, 0)
        with only_if(self.lane < 1):
            word = tirx.reinterpret("uint32", load(total, 0))
            store(self.shared, word, self.warp)
        barrier()
        result = registers(1, "float32")
        store(result, tirx.const(0.0, "float32"), 0)
        for warp in range(self.warps):
            part = tirx.reinterpret("float32", load(self.shared, warp))
            store(result, load(result, 0) + part, 0)
        return load(result, 0)

    def _store(self, turn: int, factor: Expr) -> None:
        *further, y = self.stored
        results = registers(self.together, str(y.dtype))
        for i in range(self.together):
            value = load(self.values, turn * self.together + i) * factor
            if self.finish is not None:
                column = self._column(turn) + i
                value = self.finish.apply(further, value, self.row, column)
            store(results, value, i)
        with vectorized(self.together) as lane:
            store(y, load(results, lane), self.row, self._column(turn) + lane)
