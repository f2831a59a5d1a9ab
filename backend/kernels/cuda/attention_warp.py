"""What a warp does with its rows and one tile of keys after the other.

    scores = Q Kᵀ, masked; the running maximum and total of each row
    sums = sums · correction + exp(scores − maximum) V

The scores of two instructions are the first operand of the next ones as they stand
(FlashAttention-2, arXiv 2307.08691).
"""

from __future__ import annotations

from tvm import tirx

from ..tir import Buffer, Expr
from .attention_arguments import Head
from .attention_operands import Operands
from .attention_ring import Copier
from .attention_softmax import Softmax
from .attention_tiling import AttentionTiling, SharedRows
from .fragments import EIGHT, SUMS, TILE
from .words import address, call, clear, registers


class AttentionWarp:
    """A warp's scores and sums.

    Args:
        head: of the keys.
        tiling: of the block.
        shared: memory of the block.
        first: number of its first row.
        queries: where its rows of queries lie in shared memory.
        lane: of the warp.
    """

    def __init__(
        self,
        head: Head,
        tiling: AttentionTiling,
        shared: Buffer,
        first: Expr,
        queries: Expr,
        lane: Expr,
    ) -> None:
        self.head, self.spec, self.tiling, self.first = head, head.spec, tiling, first
        self.activation = head.given.activation
        self.rows = SharedRows(tiling, self.spec, self.activation)
        self.operands = Operands(self.activation, self.rows, shared, lane)
        self.softmax = Softmax(head, tiling, first, lane)
        self.queries = queries
        self.wide = self.spec.value_size // EIGHT
        words, kept = self.activation.words, self.spec.size // TILE
        self.q = registers(tiling.tiles * words * (kept if tiling.keep_queries else 1))
        self.scores = registers(tiling.tiles * tiling.eights * SUMS, "float32")
        self.sums = registers(tiling.tiles * self.wide * SUMS, "float32")
        self.a, self.b = registers(tiling.tiles * words), registers(words)
        clear(self.sums, 0, tiling.tiles * self.wide * SUMS)

    def copy_queries(self, copier: Copier) -> None:
        """Begins to copy its rows of queries; those that are not there are zeros."""
        unit, there = self.activation.unit, self.head.given.rows

        def at(row: Expr, number: Expr) -> tuple[Expr, Expr]:
            number_of_row = self.first + row
            known = tirx.min(number_of_row, there - 1)
            return self.head.query_at(known, number * unit), number_of_row < there

        rows, units = TILE * self.tiling.tiles, self.spec.size // unit
        copier.rows(self.queries, self.rows.query, rows, units, at)

    def read_queries(self) -> None:
        """Those that stay in registers."""
        if self.tiling.keep_queries:
            for columns in range(self.spec.size // TILE):
                self._read_queries(columns)

    def _read_queries(self, columns: int) -> None:
        for tile in range(self.tiling.tiles):
            self.operands.query(self.q, self._query(tile, columns), self.queries, tile, columns)

    def _query(self, tile: int, columns: int) -> int:
        """Where its words are in registers."""
        kept = columns if self.tiling.keep_queries else 0
        return (kept * self.tiling.tiles + tile) * self.activation.words

    def take_keys(self, place: Expr, start: Expr) -> None:
        """Scores of a tile of keys, as weights."""
        clear(self.scores, 0, self.tiling.tiles * self.tiling.eights * SUMS)
        for columns in range(self.spec.size // TILE):
            if not self.tiling.keep_queries:
                self._read_queries(columns)
            for keys in range(self.tiling.keys // TILE):
                self.operands.keys(self.b, place, keys, columns)
                for eight in range(2):
                    for tile in range(self.tiling.tiles):
                        at = (tile * self.tiling.eights + 2 * keys + eight) * SUMS
                        query = address(self.q, self._query(tile, columns))
                        self._multiply(address(self.scores, at), query, eight)
        self.softmax.mask(self.scores, start)
        self.softmax.weigh(self.scores, self.sums)

    def take_values(self, place: Expr, start: Expr) -> None:
        """Adds the values of the same keys by their weights."""
        words = self.activation.words
        for keys in range(self.tiling.keys // TILE):
            for tile in range(self.tiling.tiles):
                at = (tile * self.tiling.eights + 2 * keys) * SUMS
                name = f"undense_scores_{self.activation.short}"
                call(name, address(self.a, tile * words), address(self.scores, at))
            for columns in range(self.spec.value_size // TILE):
                self.operands.values(self.b, place, keys, columns)
                for eight in range(2):
                    for tile in range(self.tiling.tiles):
                        at = (tile * self.wide + 2 * columns + eight) * SUMS
                        self._multiply(address(self.sums, at), address(self.a, tile * words), eight)

    def _multiply(self, sums: Expr, first: Expr, eight: int) -> None:
        second = address(self.b, eight * (self.activation.words // 2))
        call(f"undense_mma_{self.activation.short}", sums, first, second)
