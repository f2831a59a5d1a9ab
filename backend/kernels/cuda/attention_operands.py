"""Operands of tensor cores from rows in shared memory, by the lanes' addresses.

`ldmatrix` gives lane `4 g + t` word t of row g of a unit column, or, transposed, entry g of rows
2 t and 2 t + 1. Of halves that is what an instruction takes. Of float32 it is an order of columns
in which queries and keys agree; values are read word by word.
"""

from __future__ import annotations

from ..tir import Buffer, Expr, load, store
from .attention_tiling import SharedRows
from .dtypes import Activation
from .fragments import EIGHT, TILE
from .words import UNIT, address, call, held


class Operands:
    """Reads queries, keys and values of 16 rows by 16 columns.

    Args:
        activation: their type.
        rows: how they lie in shared memory.
        shared: it.
        lane: that reads.
    """

    def __init__(
        self, activation: Activation, rows: SharedRows, shared: Buffer, lane: Expr
    ) -> None:
        self._activation, self._rows, self._shared = activation, rows, shared
        self._halves = activation.bytes == 2
        self._columns = TILE * activation.bytes // 4
        rows_first = (lane % TILE, lane // TILE)
        units_first = (lane // TILE * EIGHT + lane % EIGHT, lane // EIGHT % 2)
        four_units = (lane % EIGHT, lane // EIGHT)

        def offset(place: tuple[Expr, Expr], row_words: int) -> Expr:
            row, unit = place
            return held(row * row_words + unit * UNIT)

        self._query = offset(rows_first if self._halves else units_first, rows.query)
        self._key = offset(units_first if self._halves else four_units, rows.key)
        if self._halves:
            self._value = offset(rows_first, rows.value)
        else:
            self._value = held(lane % 4 * (2 * rows.value) + lane // 4)

    def query(self, words: Buffer, first: int, place: Expr, tile: int, columns: int) -> None:
        """The first operand of a tile of 16 rows and of 16 columns."""
        at = place + self._query + tile * TILE * self._rows.query + columns * self._columns
        for pair in range(self._activation.words // 4):
            source = address(self._shared, at + pair * 2 * UNIT)
            call("undense_ldmatrix_x4", address(words, first + 4 * pair), source)

    def keys(self, words: Buffer, place: Expr, tile: int, columns: int) -> None:
        """The second operands of 8 keys and of the next 8."""
        at = place + self._key + tile * TILE * self._rows.key + columns * self._columns
        for part in range(self._activation.words // 4):
            source = address(self._shared, at + part * EIGHT * self._rows.key)
            call("undense_ldmatrix_x4", address(words, 4 * part), source)

    def values(self, words: Buffer, place: Expr, tile: int, columns: int) -> None:
        """The second operands of 8 columns and of the next 8, for 16 keys."""
        row = self._rows.value
        at = place + self._value + tile * TILE * row + columns * self._columns
        if self._halves:
            call("undense_ldmatrix_x4_trans", address(words, 0), address(self._shared, at))
            return
        for eight in range(2):
            for i, key in enumerate((0, 1, EIGHT, EIGHT + 1)):
                found = load(self._shared, at + eight * EIGHT + key * row)
                store(words, found, eight * 4 + i)
