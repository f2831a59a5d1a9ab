"""Products of many rows on Hopper, whose tensor cores read x from shared memory by themselves.

    block        `height` rows of x by the outputs of its warpgroups
      serial       chunks of 64 inputs; those of the next stages are being copied meanwhile
        warpgroup    64 outputs by 16 inputs, times 16 inputs by 128 rows: one instruction (wgmma)

A warp's part of the first operand is the fragment of `mma.m16n8k16`, so that weights come from the
same order and are decoded in registers as for other kernels; while the tensor cores work on one
fragment the next ones are decoded. The second operand is named by a descriptor of shared memory,
where a row has the 64 inputs of a chunk in the order of the instructions: inputs 16 t + 4 j + 2 h
and the next one are pair t of 16-byte unit 2 j + h. So x is copied in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from tvm import tirx

from ..finish import Finish
from ..tir import Buffer, Expr, load, only_if, serial, store
from .fragments import CHUNK, EIGHT, SUMS, TILES, chunks, row_tiles
from .product import Product
from .staged_rows import Stage, StagedBlock, StagedTiling
from .tiling_checks import check_counts
from .weights import Fragment, Weights
from .words import (
    UNIT,
    address,
    barrier,
    call,
    divided,
    grid,
    held,
    registers,
    unrolled,
)

_ROWS = 128
"""Of x of one instruction."""

_WARPS = 4
"""Of a warpgroup."""

_UNITS = 8
"""Of 16 bytes of a row of x in a stage."""

_SWIZZLE_BYTES = 1024
"""After which the order of units repeats, and where an operand begins."""


@dataclass(frozen=True)
class WarpgroupRowsTiling:
    """How a product of many rows is cut up for instructions of a warpgroup.

    Attributes:
        warpgroups: of a block, side by side along the outputs.
        height: rows of a block, a multiple of 128.
        tiles: of 64 outputs of a warpgroup.
        stages: chunks of inputs in shared memory; two of them are being read.
    """

    warpgroups: int
    height: int
    tiles: int
    stages: int

    def __post_init__(self) -> None:
        """Refuses what is no tiling, and stages of which none can be copied to.

        Raises:
            ValueError: names the field.
        """
        check_counts(self, stages=3)
        if self.height % _ROWS:
            raise ValueError(f"height is {self.height} and no multiple of {_ROWS}")

    @property
    def staged(self) -> StagedTiling:
        """The same by warps, of which each has all rows."""
        eights = self.height // EIGHT
        return StagedTiling(1, _WARPS * self.warpgroups, eights, self.tiles, self.stages)

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.staged.warps

    def stage(self, weights: Weights) -> Stage:
        """Where the parts of a stage lie."""
        return Stage(self.staged, weights, _SWIZZLE_BYTES // 4)

    def shared_bytes(self, weights: Weights) -> int:
        """All stages behind what aligns them, or the outputs afterwards."""
        stages = _SWIZZLE_BYTES + 4 * self.stages * self.stage(weights).words
        return max(stages, 4 * self.staged.output_words(weights))


def emit_warpgroup_rows(
    product: Product,
    tiling: WarpgroupRowsTiling,
    finish: Finish | None,
    rows: Expr,
    buffers: Sequence[Buffer],
) -> None:
    """A kernel for any number of rows of a half type, on sm_90a alone."""
    staged, stage = tiling.staged, tiling.stage(product.weights)
    heights = divided(rows, staged.height)
    widths = divided(row_tiles(product.width), staged.width_tiles)
    with grid((heights, widths, product.blocks), staged.warps) as (place, warp, lane):
        block = _Block(product, staged, stage, finish, rows, buffers, place, warp, lane)
        block.emit(tiling.shared_bytes(product.weights))


class _Block(StagedBlock):
    """Keeps x in the order of instructions, and multiplies by `wgmma`."""

    def emit(self, shared_bytes: int) -> None:
        """The whole kernel."""
        # A stage is copied to again when the products of the chunk before the last one are done.
        ahead = self.tiling.stages - 2
        self.allocate(shared_bytes)
        first = address(self.shared, 0)
        aligned = tirx.call_extern("int32", "undense_words_to_kilobyte", first)
        self.first_word = held(tirx.Cast("int64", aligned))
        count = TILES * self.tiling.tiles if self.weights.scaled else 0
        self.fragments = [registers(self.activation.words) for _ in range(count)]
        self.begin(ahead)
        with serial(chunks(self.product.depth)) as chunk:
            call("undense_copy_wait", ahead - 1)
            call("undense_fence_proxy_async")
            barrier()
            self.copy_later(chunk, ahead)
            self.multiply(self.start(chunk % self.tiling.stages), chunk)
        count = self.tiling.tiles * self.tiling.eights * SUMS
        call("undense_wgmma_finish", address(self.sums, 0), count)
        self.store_outputs()

    @property
    def kept_tiles(self) -> int:
        """All: products read the words of dense weights while the next ones come."""
        return self.tiling.tiles

    def start(self, stage: Expr) -> Expr:
        """Behind what aligns the stages."""
        return held(self.first_word + stage * self.stage.words)

    def copy_x(self, start: Expr, chunk: Expr) -> None:
        """A row to a warp: its 32 pairs go to 32 banks."""
        tiling = self.tiling
        k = held(chunk * CHUNK + self.lane * 2)
        unit, word = held(self.lane % _UNITS), held(self.lane // _UNITS)
        with unrolled(divided(tiling.height, tiling.warps)) as turn:
            row = turn * tiling.warps + self.column_warp
            with only_if(row < tiling.height) if tiling.height % tiling.warps else nullcontext():
                place = start + row * self.stage.x_row
                place = place + tirx.bitwise_xor(unit, row % _UNITS) * UNIT + word
                self._copy_pair(place, self.first_row + row, k)

    def _copy_pair(self, place: Expr, row: Expr, k: Expr) -> None:
        """Two neighbours of a row, or zeros behind the last input and the last row."""
        product = self.product
        there = row < self.rows
        column = self.block * product.stride + k
        if product.in_pairs:
            if product.depth % CHUNK:
                there = tirx.all(there, k < product.depth)
            sizes = (tirx.const(4, "int32"), tirx.const(0, "int32"))
            amount = tirx.if_then_else(there, *sizes)
            source = address(self.x, row, column)
            call("undense_copy_async_4", address(self.shared, place), source, amount)
            return
        values = registers(2, self.activation.dtype)
        for i in range(2):
            inside = tirx.all(there, k + i < product.depth)
            zero = tirx.const(0.0, self.activation.dtype)
            store(values, tirx.if_then_else(inside, load(self.x, row, column + i), zero), i)
        call("undense_load_4", address(self.shared, place), address(values, 0))

    def multiply(self, start: Expr, chunk: Expr) -> None:
        """The warpgroup's outputs by all rows; up to four groups of products are left running."""
        tiling = self.tiling
        self.read_codes(start, chunk)
        for j in range(TILES):
            # Those of the same fragment of the chunk before, whose registers are wanted now.
            call(f"undense_wgmma_wait_{TILES - 1}")
            fragments = [self._operand(start, tile, j) for tile in range(tiling.tiles)]
            call("undense_wgmma_fence")
            for tile, fragment in enumerate(fragments):
                for part in range(tiling.height // _ROWS):
                    eight = tile * tiling.eights + part * _ROWS // EIGHT
                    rows = start + part * _ROWS * self.stage.x_row + j * 2 * UNIT
                    call(
                        f"undense_multiply_rows_{self.activation.short}",
                        address(self.sums, eight * SUMS),
                        address(*fragment),
                        address(self.shared, rows),
                    )
            call("undense_wgmma_commit")

    def _operand(self, start: Expr, tile: int, j: int) -> Fragment:
        """The fragment of tile j of the chunk, in registers of its own."""
        scaled = self.fragments[j * self.tiling.tiles + tile] if self.fragments else self.values
        return self.fragment(start, tile, j, tile * self.weights.words, scaled)
