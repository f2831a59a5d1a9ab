"""Products of few rows: weights go from device memory through tensor cores once, in order.

    block   a few tiles of 16 outputs, 8 or 16 rows of x
      warp    every so many-th chunk of the inputs; weights and scales of the next ones are being
              copied to a ring of its own in shared memory, which takes no registers, and x of the
              next one is being loaded
        tile    16 outputs by 16 inputs, times 16 inputs by 8 rows: one instruction
      sum of the warps' results in shared memory, finished and stored

A single row takes as long as eight: the weights bound it, and the tensor cores are idle anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from tvm import tirx

from ..finish import Finish
from ..tir import Buffer, Expr, index, load, only_if, serial, store
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
class FewRowsTiling:
    """How a product of few rows is cut up.

    Attributes:
        eights: of rows of a block.
        ahead: chunks whose weights a warp has under way: 2, 4, 6 or 8.
        warps: of a block, which share the inputs.
        tiles: of 16 outputs of a block.
    """

    eights: int
    ahead: int
    warps: int = 8
    tiles: int = 2

    def __post_init__(self) -> None:
        """Refuses what is no tiling, and a ring that has no place beside what is read.

        Raises:
            ValueError: names the field.
        """
        check_counts(self, ahead=2)

    def slot_words(self, weights: Weights) -> int:
        """Weights of a chunk, and the scales of its groups behind them."""
        matrices = self.tiles * weights.planes
        return matrices * (weights.words * WARP + weights.groups_of_chunk * TILE)

    def shared_bytes(self, weights: Weights) -> int:
        """The rings of all warps, or their sums afterwards."""
        ring = self.ahead * self.slot_words(weights)
        return 4 * self.warps * max(ring, self.tiles * TILE * self.eights * EIGHT)


def emit_few_rows(
    product: Product,
    tiling: FewRowsTiling,
    finish: Finish | None,
    rows: Expr,
    buffers: Sequence[Buffer],
) -> None:
    """A kernel for any number of rows, `8 · eights` at a time."""
    tiles = divided(row_tiles(product.width), tiling.tiles)
    passes = divided(rows, EIGHT * tiling.eights)
    with grid((tiles, passes, product.blocks), tiling.warps) as ((x, y, z), warp, lane):
        first_tile = held(x * tiling.tiles)
        first_row = held(y * (EIGHT * tiling.eights))
        _Block(product, tiling, finish, rows, buffers, first_tile, first_row, z, warp, lane).emit()


class _Block:
    """Emits what a thread of one block does."""

    def __init__(
        self,
        product: Product,
        tiling: FewRowsTiling,
        finish: Finish | None,
        rows: Expr,
        buffers: Sequence[Buffer],
        first_tile: Expr,
        first_row: Expr,
        block: Expr,
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.product, self.tiling, self.finish, self.rows = product, tiling, finish, rows
        self.first_tile, self.first_row, self.block = first_tile, first_row, block
        self.warp, self.lane = warp, lane
        self.weights, self.activation = product.weights, product.activation
        self.x, self.source, self.stored = product.parts(buffers)
        self.row, self.column = held(lane // 4), held(lane % 4)
        self.chunk_words = self.weights.planes * self.weights.words
        # Scales of whole chunks are applied to sums, in float32; others to the weights.
        self.sums_scaled = isinstance(self.weights, Coded) and self.weights.group % CHUNK == 0

    def emit(self) -> None:
        tiling = self.tiling
        self.sums = registers(tiling.tiles * tiling.eights * SUMS, "float32")
        clear(self.sums, 0, tiling.tiles * tiling.eights * SUMS)
        self.words = registers(self.chunk_words)
        x_words = tiling.eights * TILES * self.activation.words // 2
        self.x_words, self.x_next = registers(x_words), registers(x_words)
        self.values = registers(self.activation.words)
        self.scaled = registers(self.activation.words)
        self.part = registers(tiling.eights * SUMS, "float32")
        self.shared = shared_words(tiling.shared_bytes(self.weights) // 4)
        self.slot = tiling.slot_words(self.weights)
        self.ring = held(self.warp * (tiling.ahead * self.slot))
        total = chunks(self.product.depth)
        self._load_x(self.warp, total)
        for j in range(tiling.ahead):
            self._copy(self.warp + j * tiling.warps, index(j), total)
        with serial(divided(total, tiling.warps)) as turn:
            chunk = held(turn * tiling.warps + self.warp)
            number = held(turn % tiling.ahead)
            with only_if(chunk < total):
                for i in range(x_words):
                    store(self.x_words, load(self.x_next, i), i)
                self._load_x(chunk + tiling.warps, total)
                call("undense_copy_wait", tiling.ahead - 1)
                call("__syncwarp")
                self._multiply(held(self.ring + number * self.slot), chunk)
            # All lanes have read what is copied over now.
            call("__syncwarp")
            self._copy(chunk + tiling.ahead * tiling.warps, number, total)
        self._finish()

    def _copy(self, chunk: Expr, number: Expr, total: int) -> None:
        """Begins to copy a chunk's weights, if there is one; a group of copies in any case."""
        weights = self.weights
        chunk = held(chunk)
        slot = held(self.ring + number * self.slot)
        units = weights.words * WARP // UNIT
        with only_if(chunk < total):
            for tile in range(self.tiling.tiles):
                for plane in range(weights.planes):
                    first = (tile * weights.planes + plane) * weights.words * WARP
                    for turn in range(divided(units, WARP)):
                        unit = self.lane + turn * WARP
                        spare = units - turn * WARP < WARP
                        with only_if(unit < units) if spare else nullcontext():
                            place = slot + first + unit * UNIT
                            at = weights.word(
                                self.source[0],
                                plane,
                                self.block,
                                self._tile(tile),
                                chunk,
                                unit * UNIT,
                            )
                            call("undense_copy_async", address(self.shared, place), at, 16)
            if isinstance(weights, Coded):
                self._copy_scales(weights, slot, chunk)
        call("undense_copy_commit")

    def _copy_scales(self, weights: Coded, slot: Expr, chunk: Expr) -> None:
        """Begins to copy the scales of a chunk's groups; those behind the last group repeat it."""
        scales, groups = self.source[1], weights.groups_of_chunk
        units, last = TILE // UNIT, int(scales.shape[3]) - 1
        count = self.tiling.tiles * weights.planes * groups * units
        for turn in range(divided(count, WARP)):
            item = self.lane + turn * WARP
            with only_if(item < count) if count - turn * WARP < WARP else nullcontext():
                unit, number = held(item % units), held(item // units)
                matrix = held(number // groups)
                group = tirx.min(chunk * CHUNK // weights.group + number % groups, index(last))
                tile, plane = self._tile(matrix // weights.planes), matrix % weights.planes
                at = address(scales, plane, self.block, tile, group, unit * UNIT)
                place = self._scales_of(slot) + item * UNIT
                call("undense_copy_async", address(self.shared, place), at, 16)

    def _scales_of(self, slot: Expr) -> Expr:
        """Where the scales of a slot begin."""
        weights = self.weights
        return slot + self.tiling.tiles * weights.planes * weights.words * WARP

    def _scale(self, slot: Expr, tile: int, plane: int, within: Expr, side: int) -> Expr:
        """That of output g, or g + 8, of a tile, in one of a chunk's groups."""
        matrix = tile * self.weights.planes + plane
        first = (matrix * self.weights.groups_of_chunk + within) * TILE
        place = self._scales_of(slot) + first + self.row + 8 * side
        return tirx.reinterpret("float32", load(self.shared, place))

    def _tile(self, tile: int | Expr) -> Expr:
        """A tile that is there; the results of others are not stored."""
        last = row_tiles(self.product.width) - 1
        return tirx.min(self.first_tile + tile, index(last))

    def _multiply(self, slot: Expr, chunk: Expr) -> None:
        for tile in range(self.tiling.tiles):
            for plane in range(self.weights.planes):
                first = tile * self.weights.planes + plane
                start = held(slot + first * self.weights.words * WARP)
                self.weights.read(
                    self.words, plane * self.weights.words, self.shared, start, self.lane
                )
            if self.sums_scaled:
                self._multiply_then_scale(slot, tile)
            else:
                self._multiply_tile(slot, tile, chunk)

    def _load_x(self, chunk: Expr, total: int) -> None:
        """16 neighbouring inputs of one row of every eight, of a chunk if there is one."""
        units = 16 // self.activation.unit
        with only_if(chunk < total):
            for eight in range(self.tiling.eights):
                # A row that is not there has sums of its own, which are not stored.
                row = held(tirx.min(self.first_row + eight * EIGHT + self.row, self.rows - 1))
                for unit in range(units):
                    k = chunk * CHUNK + self.column * 16 + unit * self.activation.unit
                    first = (eight * units + unit) * 4
                    self.product.load_unit(self.x_next, first, self.x, row, self.block, k)

    def _multiply_then_scale(self, slot: Expr, tile: int) -> None:
        """Sums of exact codes, each plane's times its scales."""
        weights = self.weights
        assert isinstance(weights, Coded)
        count = self.tiling.eights * SUMS
        for plane in range(weights.planes):
            clear(self.part, 0, count)
            first = plane * weights.words
            for j in range(TILES):
                fragment = weights.fragment(self.words, first, j, self.values)
                self._instructions(fragment, j, self.part, 0)
            for side in range(2):
                scale = held(self._scale(slot, tile, plane, index(0), side))
                for eight in range(self.tiling.eights):
                    for i in range(2):
                        place = eight * SUMS + 2 * side + i
                        at = tile * count + place
                        value = load(self.sums, at) + scale * load(self.part, place)
                        store(self.sums, value, at)

    def _multiply_tile(self, slot: Expr, tile: int, chunk: Expr) -> None:
        """Sums of weights, which codes are scaled to in the type of x."""
        weights = self.weights
        scales = None
        if isinstance(weights, Coded):
            scales = registers(2 * weights.planes, "float32")
            within = weights.group_within(chunk, self.column)
            for plane in range(weights.planes):
                for side in range(2):
                    scale = self._scale(slot, tile, plane, within, side)
                    store(scales, scale, 2 * plane + side)
        for j in range(TILES):
            if isinstance(weights, Coded) and scales is not None:
                fragment = weights.scaled_fragment(
                    self.words, 0, j, self.values, self.scaled, scales
                )
            else:
                fragment = weights.fragment(self.words, 0, j, self.values)
            self._instructions(fragment, j, self.sums, tile * self.tiling.eights * SUMS)

    def _instructions(self, fragment: Fragment, tile: int, sums: Buffer, first: int) -> None:
        """One product for every eight rows."""
        words = self.activation.words
        for eight in range(self.tiling.eights):
            b = (eight * TILES + tile) * (words // 2)
            call(
                f"undense_mma_{self.activation.short}",
                address(sums, first + eight * SUMS),
                address(*fragment),
                address(self.x_words, b),
            )

    def _finish(self) -> None:
        """Adds up the results of the warps, a thread an output of a row."""
        tiling = self.tiling
        outputs, rows = tiling.tiles * TILE, tiling.eights * EIGHT
        shared = self.shared
        barrier()
        for tile in range(tiling.tiles):
            for eight in range(tiling.eights):
                for i in range(SUMS):
                    row = eight * EIGHT + self.column * 2 + i % 2
                    position = tile * TILE + self.row + 8 * (i // 2)
                    place = (self.warp * rows + row) * outputs + position
                    value = load(self.sums, (tile * tiling.eights + eight) * SUMS + i)
                    store(shared, tirx.reinterpret("uint32", value), place)
        barrier()
        total = registers(1, "float32")
        thread = held(self.warp * WARP + self.lane)
        with serial(divided(outputs * rows, tiling.warps * WARP)) as turn:
            item = held(turn * (tiling.warps * WARP) + thread)
            row, position = held(item // outputs), held(item % outputs)
            there = tirx.all(row < rows, self.first_row + row < self.rows)
            with only_if(there):
                store(total, tirx.const(0.0, "float32"), 0)
                for warp in range(tiling.warps):
                    part = load(shared, (warp * rows + row) * outputs + position)
                    store(total, load(total, 0) + tirx.reinterpret("float32", part), 0)
                put(
                    self.product,
                    self.finish,
                    self.stored,
                    self.first_row + row,
                    self.block,
                    self.first_tile * TILE + position,
                    1,
                    lambda _: self._result(load(total, 0), position),
                )

    def _result(self, total: Expr, position: Expr) -> Expr:
        """A sum times the unit of its output, by the output's position in the block."""
        if not self.weights.scaled:
            return total
        tile = self.first_tile + position // TILE
        return total * load(self.source[2], self.block, tile, position % TILE)
