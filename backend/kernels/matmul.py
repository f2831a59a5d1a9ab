"""`y = x Ŵᵀ` on a CPU: a tile of Ŵ is decoded once into the cache and used for all rows of x.

    parallel  block of 16 outputs
      serial    chunk of inputs (inside one group): decode it to a tile [chunk, 16]
        serial    up to `rows` rows of x: multiply and add in registers, then
                  y[row, block] += scale[group, block] · (x's own scale) · sum

So weights are read once per call, 16 outputs share a register, and no dense weight is ever in
memory. With rounded activations the sums are of int16 products in int32, exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tvm import tirx

from .blocks import LANES, block_count
from .dots import Tiling, dot_floats, dot_pairs, float_tile, pair_tile
from .rounding import pairs, words_per_row
from .sources import Codes, Floats
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    broadcast,
    convert,
    index,
    load,
    local,
    parallel,
    prim_func,
    ramp,
    serial,
    store,
    when,
    zeros,
)

_CODE_CHUNK = 128
"""Inputs decoded at a time: a tile of 8 KB of floats."""

_FLOAT_CHUNK = 512
"""Inputs of plain weights at a time: 32 KB."""


@dataclass(frozen=True)
class Matmul:
    """`batches` products side by side, each `[rows, in_features] · [in_features, out_features]`.

    Attributes:
        in_features: inputs of one batch; batch b reads the columns `b · in_features …` of x.
        out_features: outputs of one batch.
        source: how the weights are stored; only plain ones have several batches.
        run: output j of batch b goes to the column `(j // run · batches + b) · run + j % run`;
            without one the batches lie one behind the other.
        rounded: x comes as int8 codes with a scale per row and group (see `rounding`).
    """

    in_features: int
    out_features: int
    source: Floats | Codes
    run: int | None = None
    rounded: bool = False

    @property
    def batches(self) -> int:
        """The number of products."""
        return self.source.batches if isinstance(self.source, Floats) else 1


@cache
def matmul(spec: Matmul, tiling: Tiling) -> PrimFunc:
    """The PrimFunc `(x, *weights, y)`, or `(codes of x, scales of x, *weights, y)` if rounded."""
    blocks = block_count(spec.out_features)
    stored = spec.source.arguments(blocks, spec.in_features)
    width_out = spec.batches * spec.out_features

    def arguments(rows: Expr) -> Sequence[Argument]:
        inputs = [Argument("x", (rows, spec.batches * spec.in_features), "float32")]
        if isinstance(spec.source, Codes) and spec.rounded:
            group = spec.source.group
            inputs = [
                Argument("x", (rows, words_per_row(spec.in_features, group)), "int32"),
                Argument("x_scales", (rows, -(-spec.in_features // group)), "float32"),
            ]
        return [*inputs, *stored, Argument("y", (rows, width_out), "float32")]

    def body(rows: Expr, *buffers: Buffer) -> None:
        inputs, weights, y = (
            buffers[: -len(stored) - 1],
            buffers[-len(stored) - 1 : -1],
            buffers[-1],
        )
        with parallel(spec.batches * blocks) as block:
            _Block(spec, tiling, rows, inputs, weights, y, block).emit()

    return prim_func(arguments, body)


class _Block:
    """Emits the statements for one block of 16 outputs."""

    def __init__(
        self,
        spec: Matmul,
        tiling: Tiling,
        rows: Expr,
        inputs: Sequence[Buffer],
        weights: Sequence[Buffer],
        y: Buffer,
        block: Expr,
    ) -> None:
        self.spec, self.tiling, self.rows = spec, tiling, rows
        self.inputs, self.weights, self.y = inputs, weights, y
        per_batch = block_count(spec.out_features)
        self.batch, self.block = block // per_batch, block % per_batch
        self.first_output = self.block * LANES

    def emit(self) -> None:
        source, parts = self.spec.source, _chunks(self.spec)
        planes = source.planes if isinstance(source, Codes) else 1
        add = planes * sum(part.groups * part.steps for part in parts) > 1
        if add:
            with serial(self.rows) as row:
                self._write(row, [zeros("float32", LANES)], add=False)
        with serial(planes) as plane:
            for part in parts:
                with serial(part.groups) as group, serial(part.steps) as step:
                    if isinstance(source, Codes):
                        self._codes(source, plane, part, group, step, add)
                    else:
                        self._floats(part, step, add)

    def _floats(self, part: _Chunks, step: Expr, add: bool) -> None:
        (weight,) = self.weights
        start = step * part.length + part.start

        def weights_at(k: Expr) -> Expr:
            return load(weight, self.batch, self.block, start + k, ramp(0, LANES))

        def rows_at(first: Expr, rows: int) -> None:
            self._write(first, self._float_sums(first, rows, start, part.length, weights_at), add)

        self._all_rows(rows_at)

    def _codes(
        self, source: Codes, plane: Expr, part: _Chunks, group: Expr, step: Expr, add: bool
    ) -> None:
        stored, scales = self.weights
        layout, length = source.format, part.length
        group = group + part.first_group
        first_unit = group * layout.units(source.group) + step * layout.units(length)
        scale = load(scales, plane, self.block, group, ramp(0, LANES))
        make_tile = pair_tile if self.spec.rounded else float_tile
        tile = make_tile(
            lambda unit: source.decode(stored, plane, self.block, first_unit + unit, 0, LANES),
            layout.units(length),
            layout.codes,
        )

        def rows_at(first: Expr, rows: int) -> None:
            if self.spec.rounded:
                word = group * pairs(source.group) + step * length // 2
                sums = self._rounded_sums(first, rows, word, group, length, tile)
            else:
                start = group * source.group + step * length
                sums = self._float_sums(
                    first, rows, start, length, lambda k: load(tile, ramp(k * LANES, LANES))
                )
            self._write(first, [total * scale for total in sums], add)

        self._all_rows(rows_at)

    def _float_sums(
        self, first: Expr, rows: int, start: Expr, count: int, weights_at: Callable[[Expr], Expr]
    ) -> list[Expr]:
        (x,) = self.inputs
        column = self.batch * self.spec.in_features + start
        return dot_floats(rows, count, lambda row, k: load(x, first + row, column + k), weights_at)

    def _rounded_sums(
        self, first: Expr, rows: int, word: Expr, group: Expr, count: int, tile: Buffer
    ) -> list[Expr]:
        words, scales = self.inputs
        sums = dot_pairs(
            rows,
            pairs(count),
            lambda row, k: load(words, first + row, word + k),
            tile,
            self.tiling,
        )
        return [
            convert(total, "float32", LANES) * broadcast(load(scales, first + row, group), LANES)
            for row, total in enumerate(sums)
        ]

    def _all_rows(self, emit: Callable[[Expr, int], None]) -> None:
        done: Expr = index(0)
        for rows in self.tiling.rows:
            with serial((self.rows - done) // rows) as i:
                emit(done + i * rows, rows)
            done = done + (self.rows - done) // rows * rows

    def _write(self, first: Expr, values: list[Expr], add: bool) -> None:
        """Stores or adds 16 outputs of a few rows, fewer in the last block of a batch."""
        spec = self.spec
        run = spec.run
        missing = spec.out_features - self.first_output

        def put(row: int, output: Expr, lanes: int, value: Expr) -> None:
            if run is None:
                column = self.batch * spec.out_features + output
            else:
                column = (output // run * spec.batches + self.batch) * run + output % run
            where = (first + row, ramp(column, lanes))
            store(self.y, load(self.y, *where) + value if add else value, *where)

        def together() -> None:
            for row, value in enumerate(values):
                put(row, self.first_output, LANES, value)

        def one_by_one() -> None:
            apart = local(len(values) * LANES, "float32")
            for row, value in enumerate(values):
                store(apart, value, ramp(row * LANES, LANES))
            # A loop that is not unrolled: the columns cost LLVM more time than all the rest.
            with serial(tirx.min(missing, index(LANES))) as lane:
                for row in range(len(values)):
                    put(row, self.first_output + lane, 1, load(apart, lane + row * LANES))

        if run is not None and run % LANES:
            one_by_one()
        elif spec.out_features % LANES == 0:
            together()
        else:
            when(missing >= LANES, together, one_by_one)


@dataclass(frozen=True)
class _Chunks:
    """`groups` groups from the input `start` on, each in `steps` equal chunks of `length`."""

    start: int
    first_group: int
    groups: int
    steps: int
    length: int


def _chunks(spec: Matmul) -> list[_Chunks]:
    """All inputs as chunks that lie in one group and whose tile stays in the first-level cache."""
    inputs = spec.in_features
    if not isinstance(spec.source, Codes):
        length = min(inputs, _FLOAT_CHUNK)
        full, rest = divmod(inputs, length)
        return _nonempty(_Chunks(0, 0, 1, full, length), _Chunks(inputs - rest, 0, 1, 1, rest))
    group, unit = spec.source.group, spec.source.format.codes
    full, rest = divmod(inputs, group)
    length = _chunk_of_group(group, unit)
    return _nonempty(
        _Chunks(0, 0, full, group // length, length),
        _Chunks(inputs - rest, full, 1, 1, rest),
    )


def _chunk_of_group(group: int, unit: int) -> int:
    """The longest equal part of a group that is made of whole units and whole pairs."""
    multiple = math.lcm(unit, 2)
    parts = [
        length
        for length in range(multiple, _CODE_CHUNK + 1, multiple)
        if group % length == 0 and 4 * length >= _CODE_CHUNK
    ]
    return max(parts, default=group) if group > _CODE_CHUNK else group


def _nonempty(*chunks: _Chunks) -> list[_Chunks]:
    return [part for part in chunks if part.groups * part.steps * part.length]
