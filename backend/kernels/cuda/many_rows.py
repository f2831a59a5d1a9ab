"""Products of many rows: tiles of x and of the weights pass through shared memory in stages.

    block     `height` rows of x by `width` outputs
      serial    chunks of 64 inputs; those of the next stages are being copied meanwhile
        warp      its outputs by its rows, all sums in registers
          tile      16 outputs by 16 inputs, times 16 inputs by 8 rows: one instruction

Codes stay packed in shared memory; each warp decodes what it needs in registers, a few integer
instructions for every eight of the tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from ..finish import Finish
from ..tir import Buffer, Expr, index, serial
from .fragments import CHUNK, EIGHT, SUMS, TILES, chunks, row_tiles
from .product import Product
from .staged_rows import Stage, StagedBlock, StagedTiling
from .words import UNIT, WARP, address, barrier, call, divided, grid, held, registers


class ManyRowsTiling(StagedTiling):
    """How a product of many rows is cut up for instructions of a warp."""


def emit_many_rows(
    product: Product,
    tiling: ManyRowsTiling,
    finish: Finish | None,
    rows: Expr,
    buffers: Sequence[Buffer],
) -> None:
    """A kernel for any number of rows."""
    heights = divided(rows, tiling.height)
    widths = divided(row_tiles(product.width), tiling.width_tiles)
    stage = Stage(tiling, product.weights)
    with grid((heights, widths, product.blocks), tiling.warps) as (place, warp, lane):
        _Block(product, tiling, stage, finish, rows, buffers, place, warp, lane).emit()


class _Block(StagedBlock):
    """Keeps x in the order of its rows, and multiplies by `mma`."""

    def emit(self) -> None:
        """The whole kernel."""
        tiling, ahead = self.tiling, self.tiling.stages - 1
        self.allocate(tiling.shared_bytes(self.weights))
        self.x_words = registers(tiling.eights * UNIT)
        self.scaled = registers(self.activation.words)
        self.begin(ahead)
        with serial(chunks(self.product.depth)) as chunk:
            call("undense_copy_wait", ahead - 1)
            barrier()
            self.copy_later(chunk, ahead)
            self.multiply(self.start(chunk % tiling.stages), chunk)
        self.store_outputs()

    @property
    def units(self) -> int:
        """Of a row of x in a stage."""
        return CHUNK // self.activation.unit

    def copy_x(self, start: Expr, chunk: Expr) -> None:
        """16 bytes at a time."""
        tiling, unit = self.tiling, self.activation.unit
        count = tiling.height * self.units
        with serial(divided(count, tiling.warps * WARP)) as turn:
            item = held(turn * (tiling.warps * WARP) + self.thread)
            row, number = held(item // self.units), held(item % self.units)
            k = held(chunk * CHUNK + number * unit)
            # A row that is not there has sums of its own, which are not stored.
            source = held(tirx.min(self.first_row + row, self.rows - 1))
            place = start + row * self.stage.x_row + self._swizzled(row, number) * UNIT
            with self.within(item, count):
                self._copy_unit(place, source, k)

    def _copy_unit(self, place: Expr, source: Expr, k: Expr) -> None:
        """One unit of x, or zeros behind the last input."""
        unit = self.activation.unit
        if self.product.aligned:
            amount: Any = 16
            if self.product.depth % CHUNK:
                sizes = (tirx.const(16, "int32"), tirx.const(0, "int32"))
                amount = tirx.if_then_else(k < self.product.depth, *sizes)
                k = tirx.min(k, index(self.product.depth - unit))
            at = address(self.x, source, self.block * self.product.stride + k)
            call("undense_copy_async", address(self.shared, place), at, amount)
            return
        words = registers(UNIT)
        self.product.load_unit(words, 0, self.x, source, self.block, k)
        call("undense_load_16", address(self.shared, place), address(words, 0))

    def _swizzled(self, row: Expr, unit: Expr) -> Expr:
        """Another place for a unit in every row, so that eight lanes read eight banks of four."""
        if self.activation.bytes == 2:
            return tirx.bitwise_xor(unit, row % 2)
        return tirx.bitwise_xor(unit, row % 2 * 2 + unit // 8)

    def multiply(self, start: Expr, chunk: Expr) -> None:
        """The warp's outputs by its rows, for one chunk."""
        tiling, words = self.tiling, self.activation.words
        tiles_of_unit = self.activation.unit // 4  # a tile takes four neighbours of a lane
        self.read_codes(start, chunk)
        for unit in range(TILES // tiles_of_unit):
            self._read_x(start, unit)
            for tile in range(tiling.tiles):
                for inner in range(tiles_of_unit):
                    j = unit * tiles_of_unit + inner
                    fragment = self.fragment(start, tile, j, 0, self.scaled)
                    for eight in range(tiling.eights):
                        call(
                            f"undense_mma_{self.activation.short}",
                            address(self.sums, (tile * tiling.eights + eight) * SUMS),
                            address(*fragment),
                            address(self.x_words, eight * UNIT + inner * (words // 2)),
                        )

    def _read_x(self, start: Expr, unit: int) -> None:
        for eight in range(self.tiling.eights):
            row = (self.row_warp * self.tiling.eights + eight) * EIGHT + self.row
            number = self.column * (self.units // 4) + unit
            place = start + row * self.stage.x_row + self._swizzled(row, number) * UNIT
            at = address(self.shared, place)
            call("undense_load_16", address(self.x_words, eight * UNIT), at)
