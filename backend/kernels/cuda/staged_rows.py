"""What kernels of many rows share: stages in shared memory, and the way of results to y.

A stage is a chunk of 64 inputs: rows of x, words of the weights, scales. How x lies in it and what
multiplies it is each kernel's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ..finish import Finish
from ..tir import Buffer, Expr, index, load, only_if, serial, store
from .dtypes import Activation
from .fragments import CHUNK, EIGHT, SUMS, TILE, chunks, row_tiles
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
    held,
    registers,
    shared_words,
)


@dataclass(frozen=True)
class StagedTiling:
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
        return 4 * max(self.stages * Stage(self, weights).words, self.output_words(weights))

    def output_words(self, weights: Weights) -> int:
        """What the outputs of a block take on their way to y."""
        return self.height * _row_words(self, weights.activation)


class Stage:
    """Where the parts of a stage lie, in words: rows of x, words of the weights, scales.

    Args:
        tiling: of the product.
        weights: that it reads.
        multiple: of words that a stage takes.
    """

    def __init__(self, tiling: StagedTiling, weights: Weights, multiple: int = 1) -> None:
        self.x_row = CHUNK * weights.activation.bytes // 4
        self.tile = weights.planes * weights.words * WARP
        self.weights = tiling.height * self.x_row
        self.scales = self.weights + tiling.width_tiles * self.tile
        self.groups = weights.groups_of_chunk
        self.scale_tile = weights.planes * self.groups * TILE
        used = self.scales + tiling.width_tiles * self.scale_tile
        self.words: int = divided(used, multiple) * multiple


class StagedBlock(ABC):
    """Emits what a thread of one block does.

    Args:
        product: to compute.
        tiling: of it.
        stage: of the tiling.
        finish: of the outputs.
        rows: of x.
        buffers: `(x, *weights, *finish, y)`.
        place: the block's number of its rows, of its outputs, and of its diagonal block.
        warp: of the block.
        lane: of the warp.
    """

    def __init__(
        self,
        product: Product,
        tiling: StagedTiling,
        stage: Stage,
        finish: Finish | None,
        rows: Expr,
        buffers: Sequence[Buffer],
        place: tuple[Expr, ...],
        warp: Expr,
        lane: Expr,
    ) -> None:
        self.product, self.tiling, self.stage = product, tiling, stage
        self.weights, self.activation = product.weights, product.activation
        self.rows, self.finish = rows, finish
        self.x, self.source, self.stored = product.parts(buffers)
        down, across, self.block = place
        self.first_row = held(down * tiling.height)
        self.first_tile = held(across * tiling.width_tiles)
        self.thread = held(warp * WARP + lane)
        self.lane, self.row, self.column = lane, held(lane // 4), held(lane % 4)
        self.row_warp = held(warp // tiling.column_warps)
        self.column_warp = held(warp % tiling.column_warps)

    def allocate(self, shared_bytes: int) -> None:
        """Declares what all kernels of many rows keep."""
        tiling, weights = self.tiling, self.weights
        self.shared = shared_words(shared_bytes // 4)
        count = tiling.tiles * tiling.eights * SUMS
        self.sums = registers(count, "float32")
        self.words = registers(self.kept_tiles * weights.planes * weights.words)
        self.values = registers(self.activation.words)
        self.scales = registers(2 * tiling.tiles * weights.planes, "float32")
        clear(self.sums, 0, count)

    @property
    def kept_tiles(self) -> int:
        """Tiles of a warp whose words are in registers at once."""
        return self.tiling.tiles if self.weights.scaled else 1

    @abstractmethod
    def copy_x(self, start: Expr, chunk: Expr) -> None:
        """Begins to copy a chunk of the block's rows of x to a stage."""

    @abstractmethod
    def multiply(self, start: Expr, chunk: Expr) -> None:
        """Adds the products of a chunk that has come."""

    def start(self, stage: Expr) -> Expr:
        """The first word of a stage."""
        return held(stage * self.stage.words)

    def begin(self, ahead: int) -> None:
        """Begins to copy the first chunks, each a group."""
        for stage in range(ahead):
            if stage < chunks(self.product.depth):
                self._copy(index(stage), index(stage))
            call("undense_copy_commit")

    def copy_later(self, chunk: Expr, ahead: int) -> None:
        """Begins to copy the chunk that is `ahead` of this one, if there is one."""
        later = held(chunk + ahead)
        with only_if(later < chunks(self.product.depth)):
            self._copy(later, later % self.tiling.stages)
        call("undense_copy_commit")

    def _copy(self, chunk: Expr, stage: Expr) -> None:
        """Begins to copy a chunk's rows of x, weights and scales."""
        start = self.start(stage)
        self.copy_x(start, chunk)
        tile_units = self.weights.words * WARP // UNIT
        for plane in range(self.weights.planes):
            first = start + self.stage.weights + plane * self.weights.words * WARP

            def words_at(tile: Expr, unit: Expr, plane: int = plane) -> Expr:
                number = unit * UNIT
                return self.weights.word(self.source[0], plane, self.block, tile, chunk, number)

            self._copy_tiles(first, self.stage.tile, tile_units, words_at)
        if isinstance(self.weights, Coded):
            self._copy_scales(start, chunk)

    def within(self, item: Expr, count: int) -> Any:
        """Only threads that have something to do, where not all of them have."""
        spare = count % (self.tiling.warps * WARP)
        return only_if(item < count) if spare else nullcontext()

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
            with self.within(item, count):
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

    def fragment(self, start: Expr, tile: int, j: int, first: int, scaled: Buffer) -> Fragment:
        """That of tile j of the chunk. Dense values are read now, codes have been.

        Args:
            start: of the stage.
            tile: of the warp's outputs.
            j: of the chunk's inputs.
            first: where the words of dense values begin in their registers.
            scaled: registers for a fragment of scaled codes.
        """
        weights = self.weights
        if not isinstance(weights, Coded):
            weights.read(self.words, first, self.shared, self._words_at(start, tile), self.lane, j)
            return weights.fragment(self.words, first, j, self.values)
        scales = registers(2 * weights.planes, "float32")
        for i in range(2 * weights.planes):
            store(scales, load(self.scales, tile * 2 * weights.planes + i), i)
        first = tile * weights.planes * weights.words
        return weights.scaled_fragment(self.words, first, j, self.values, scaled, scales)

    def read_codes(self, start: Expr, chunk: Expr) -> None:
        """A lane's scales, and its words of all planes and tiles; nothing of dense weights."""
        if isinstance(self.weights, Coded):
            self._read_scales(start, chunk)
            for tile in range(self.tiling.tiles):
                self._read_codes(start, tile)

    def _words_at(self, start: Expr, tile: int) -> Expr:
        """Where the words of one of the warp's tiles begin."""
        number = self.column_warp * self.tiling.tiles + tile
        return held(start + self.stage.weights + number * self.stage.tile)

    def _read_codes(self, start: Expr, tile: int) -> None:
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

    def store_outputs(self) -> None:
        """Sums, rounded to the type of y, go through shared memory to where rows are contiguous."""
        tiling, activation = self.tiling, self.activation
        barrier()
        words = _row_words(tiling, activation)
        row_values = words * 4 // activation.bytes
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
                place = address(self.shared, row * words + number * UNIT)
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


def _row_words(tiling: StagedTiling, activation: Activation) -> int:
    """Words of a row of outputs in shared memory; a unit more keeps rows in different banks."""
    return tiling.width_tiles * TILE * activation.bytes // 4 + UNIT
