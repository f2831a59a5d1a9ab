"""Products of many rows: tiles of x and of the weights pass through shared memory in stages.

    block     `height` rows of x by `width` outputs
      serial    chunks of 64 inputs; those of the next stages are being copied meanwhile
        warp      its outputs by its rows, all sums in registers
          tile      16 outputs by 16 inputs, times 16 inputs by 8 rows: one instruction

Codes stay packed in shared memory; each warp decodes what it needs in registers, a few integer
instructions for every eight of the tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ..finish import Finish
from ..tir import Buffer, Expr, index, load, only_if, serial, store
from .dtypes import Activation
from .fragments import CHUNK, EIGHT, SUMS, TILE, TILES, chunks, row_tiles
from .product import Product, put
from .tiling_checks import check_counts
from .weights import Coded, Fragment, Weights
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


@dataclass(frozen=True)
class ManyRowsTiling:
    """How a product of many rows is cut up.

    Attributes:
        row_warps: of a block, side by side along the rows.
        column_warps: along the outputs.
        eights: of rows of a warp.
        tiles: of 16 outputs of a warp.
        stages: chunks of inputs in shared memory.
    """

    row_warps: int
    column_warps: int
    eights: int
    tiles: int
    stages: int

    def __post_init__(self) -> None:
        """Refuses what is no tiling, and stages that cannot be copied while one is read.

        Raises:
            ValueError: names the field.
        """
        check_counts(self, stages=2)

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.row_warps * self.eights * EIGHT

    @property
    def width_tiles(self) -> int:
        """Tiles of outputs of a block."""
        return self.column_warps * self.tiles

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.row_warps * self.column_warps

    def shared_bytes(self, weights: Weights) -> int:
        """All stages, or the outputs afterwards."""
        outputs = self.height * _row_words(self, weights.activation)
        return 4 * max(self.stages * _Stage(self, weights).words, outputs)


class _Stage:
    """Where the parts of a stage lie, in words: rows of x, words of the weights, scales."""

    def __init__(self, tiling: ManyRowsTiling, weights: Weights) -> None:
        self.x_row = CHUNK * weights.activation.bytes // 4
        self.tile = weights.planes * weights.words * WARP
        self.weights = tiling.height * self.x_row
        self.scales = self.weights + tiling.width_tiles * self.tile
        self.groups = weights.groups_of_chunk
        self.scale_tile = weights.planes * self.groups * TILE
        self.words = self.scales + tiling.width_tiles * self.scale_tile


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
    with grid((heights, widths, product.blocks), tiling.warps) as ((x, y, z), warp, lane):
        first_row, first_tile = held(x * tiling.height), held(y * tiling.width_tiles)
        _Block(product, tiling, finish, rows, buffers, first_row, first_tile, z, warp, lane).emit()


class _Block:
    """Emits what a thread of one block does."""

    def __init__(
        self,
        product: Product,
        tiling: ManyRowsTiling,
        finish: Finish | None,
        rows: Expr,
        buffers: Sequence[Buffer],
        first_row: Expr,
        first_tile: Expr,
        block: Expr,
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.product, self.tiling, self.finish, self.rows = product, tiling, finish, rows
        self.first_row, self.first_tile, self.block = first_row, first_tile, block
        self.weights, self.activation = product.weights, product.activation
        self.x, self.source, self.stored = product.parts(buffers)
        self.thread = held(warp * WARP + lane)
        self.lane, self.row, self.column = lane, held(lane // 4), held(lane % 4)
        self.row_warp = held(warp // tiling.column_warps)
        self.column_warp = held(warp % tiling.column_warps)
        self.stage = _Stage(tiling, self.weights)
        self.units = CHUNK // self.activation.unit

    def emit(self) -> None:
        tiling, words = self.tiling, self.activation.words
        self.shared = shared_words(tiling.shared_bytes(self.weights) // 4)
        count = tiling.tiles * tiling.eights * SUMS
        self.sums = registers(count, "float32")
        self.x_words = registers(tiling.eights * UNIT)
        kept = tiling.tiles if self.weights.scaled else 1
        self.words = registers(kept * self.weights.planes * self.weights.words)
        self.values, self.scaled = registers(words), registers(words)
        self.scales = registers(2 * tiling.tiles * self.weights.planes, "float32")
        clear(self.sums, 0, count)
        total, ahead = chunks(self.product.depth), tiling.stages - 1
        for stage in range(ahead):
            if stage < total:
                self._copy(index(stage), index(stage))
            call("undense_copy_commit")
        with serial(total) as chunk:
            call("undense_copy_wait", ahead - 1)
            barrier()
            later = held(chunk + ahead)
            with only_if(later < total):
                self._copy(later, later % tiling.stages)
            call("undense_copy_commit")
            self._multiply(held(chunk % tiling.stages * self.stage.words), chunk)
        self._finish()

    def _copy(self, chunk: Expr, stage: Expr) -> None:
        """Begins to copy a chunk's rows of x, weights and scales."""
        start = held(stage * self.stage.words)
        self._copy_x(start, chunk)
        tile_units = self.weights.words * WARP // UNIT
        for plane in range(self.weights.planes):
            first = start + self.stage.weights + plane * self.weights.words * WARP

            def words_at(tile: Expr, unit: Expr, plane: int = plane) -> Expr:
                number = unit * UNIT
                return self.weights.word(self.source[0], plane, self.block, tile, chunk, number)

            self._copy_tiles(first, self.stage.tile, tile_units, words_at)
        if isinstance(self.weights, Coded):
            self._copy_scales(start, chunk)

    def _copy_x(self, start: Expr, chunk: Expr) -> None:
        tiling, unit = self.tiling, self.activation.unit
        count = tiling.height * self.units
        with serial(divided(count, tiling.warps * WARP)) as turn:
            item = held(turn * (tiling.warps * WARP) + self.thread)
            row, number = held(item // self.units), held(item % self.units)
            k = held(chunk * CHUNK + number * unit)
            # A row that is not there has sums of its own, which are not stored.
            source = held(tirx.min(self.first_row + row, self.rows - 1))
            place = start + row * self.stage.x_row + self._swizzled(row, number) * UNIT
            with self._within(item, count):
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

    def _within(self, item: Expr, count: int) -> Any:
        """Only threads that have something to do, where not all of them have."""
        spare = count % (self.tiling.warps * WARP)
        return only_if(item < count) if spare else nullcontext()

    def _swizzled(self, row: Expr, unit: Expr) -> Expr:
        """Another place for a unit in every row, so that eight lanes read eight banks of four."""
        if self.activation.bytes == 2:
            return tirx.bitwise_xor(unit, row % 2)
        return tirx.bitwise_xor(unit, row % 2 * 2 + unit // 8)

    def _copy_tiles(
        self, start: Expr, stride: int, units: int, source: Callable[[Expr, Expr], Expr]
    ) -> None:
        """Copies `units` units of every tile of the block; tiles that are not there repeat."""
        tiling = self.tiling
        count = tiling.width_tiles * units
        last = row_tiles(self.product.width) - 1
        with serial(divided(count, tiling.warps * WARP)) as turn:
            item = held(turn * (tiling.warps * WARP) + self.thread)
            tile, unit = held(item // units), held(item % units)
            with self._within(item, count):
                there = tirx.min(self.first_tile + tile, index(last))
                place = start + tile * stride + unit * UNIT
                call("undense_copy_async", address(self.shared, place), source(there, unit), 16)

    def _copy_scales(self, start: Expr, chunk: Expr) -> None:
        """The scales of the groups of a chunk; those behind the last group repeat it."""
        weights, scales = self.weights, self.source[1]
        assert isinstance(weights, Coded)
        groups = int(scales.shape[3])
        for plane in range(weights.planes):
            for number in range(self.stage.groups):
                group = held(
                    tirx.min(
                        tirx.floordiv(chunk * CHUNK, index(weights.group)) + number,
                        index(groups - 1),
                    )
                )
                first = start + self.stage.scales
                first = first + (plane * self.stage.groups + number) * TILE

                def scales_at(
                    tile: Expr, unit: Expr, plane: int = plane, group: Expr = group
                ) -> Expr:
                    return address(scales, plane, self.block, tile, group, unit * UNIT)

                self._copy_tiles(first, self.stage.scale_tile, TILE // UNIT, scales_at)

    def _multiply(self, start: Expr, chunk: Expr) -> None:
        """The warp's outputs by its rows, for one chunk."""
        tiling, words = self.tiling, self.activation.words
        tiles_of_unit = self.activation.unit // 4  # a tile takes four neighbours of a lane
        if isinstance(self.weights, Coded):
            self._read_scales(start, chunk)
            for tile in range(tiling.tiles):
                self._read_codes(start, tile)
        for unit in range(TILES // tiles_of_unit):
            self._read_x(start, unit)
            for tile in range(tiling.tiles):
                for inner in range(tiles_of_unit):
                    fragment = self._fragment(start, tile, unit * tiles_of_unit + inner)
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

    def _fragment(self, start: Expr, tile: int, j: int) -> Fragment:
        """That of tile j of the chunk. Dense values are read now, codes have been."""
        weights = self.weights
        if not isinstance(weights, Coded):
            weights.read(self.words, 0, self.shared, self._words_at(start, tile), self.lane, j)
            return weights.fragment(self.words, 0, j, self.values)
        scales = registers(2 * weights.planes, "float32")
        for i in range(2 * weights.planes):
            store(scales, load(self.scales, tile * 2 * weights.planes + i), i)
        first = tile * weights.planes * weights.words
        return weights.scaled_fragment(self.words, first, j, self.values, self.scaled, scales)

    def _words_at(self, start: Expr, tile: int) -> Expr:
        """Where the words of one of the warp's tiles begin."""
        number = self.column_warp * self.tiling.tiles + tile
        return held(start + self.stage.weights + number * self.stage.tile)

    def _read_codes(self, start: Expr, tile: int) -> None:
        """A lane's words of all planes of the chunk."""
        words, planes = self.weights.words, self.weights.planes
        place = self._words_at(start, tile)
        for plane in range(planes):
            first = (tile * planes + plane) * words
            at = place + plane * words * WARP
            self.weights.read(self.words, first, self.shared, at, self.lane)

    def _read_scales(self, start: Expr, chunk: Expr) -> None:
        weights = self.weights
        assert isinstance(weights, Coded)
        within = weights.group_within(chunk, self.column)
        for tile in range(self.tiling.tiles):
            first = (self.column_warp * self.tiling.tiles + tile) * self.stage.scale_tile
            for plane in range(weights.planes):
                for side in range(2):
                    place = start + self.stage.scales + first
                    place = place + (plane * self.stage.groups + within) * TILE
                    found = load(self.shared, place + self.row + 8 * side)
                    at = tile * 2 * weights.planes + 2 * plane + side
                    store(self.scales, tirx.reinterpret("float32", found), at)

    def _finish(self) -> None:
        """Sums, rounded to the type of y, go through shared memory to where rows are contiguous."""
        tiling, activation = self.tiling, self.activation
        barrier()
        row_words = _row_words(tiling, activation)
        row_values = row_words * 4 // activation.bytes
        for tile in range(tiling.tiles):
            low, high = (self._unit(tile, side) for side in range(2))
            for eight in range(tiling.eights):
                row = (self.row_warp * tiling.eights + eight) * EIGHT + self.column * 2
                output = (self.column_warp * tiling.tiles + tile) * TILE + self.row
                call(
                    f"undense_store_sums_{activation.short}",
                    address(self.shared, 0),
                    tirx.Cast("int32", row * row_values + output),
                    address(self.sums, (tile * tiling.eights + eight) * SUMS),
                    row_values,
                    low,
                    high,
                )
        barrier()
        units = tiling.width_tiles * TILE // activation.unit
        count = tiling.height * units
        values = registers(activation.unit, activation.dtype)
        with serial(divided(count, tiling.warps * WARP)) as turn:
            item = held(turn * (tiling.warps * WARP) + self.thread)
            row, number = held(item // units), held(item % units)
            there = tirx.all(item < count, self.first_row + row < self.rows)
            with only_if(there):
                place = address(self.shared, row * row_words + number * UNIT)
                call("undense_copy_16", address(values, 0), place)
                put(
                    self.product,
                    self.finish,
                    self.stored,
                    self.first_row + row,
                    self.block,
                    held(self.first_tile * TILE + number * activation.unit),
                    activation.unit,
                    lambda i: load(values, i),
                )

    def _unit(self, tile: int, side: int) -> Expr:
        """What sums of output g, or g + 8, of one of the warp's tiles are multiplied by."""
        if not self.weights.scaled:
            return tirx.const(1.0, "float32")
        last = row_tiles(self.product.width) - 1
        number = self.first_tile + self.column_warp * self.tiling.tiles + tile
        there = tirx.min(number, index(last))
        return held(load(self.source[2], self.block, there, self.row + 8 * side))


def _row_words(tiling: ManyRowsTiling, activation: Activation) -> int:
    """Words of a row of outputs in shared memory; a unit more keeps rows in different banks."""
    return tiling.width_tiles * TILE * activation.bytes // 4 + UNIT
