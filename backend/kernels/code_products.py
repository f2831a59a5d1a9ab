"""`y = x Ŵᵀ` with Ŵ in packed codes.

    parallel  groups of panels of 16 outputs
      one row: every word is decoded in registers and multiplied at once
      several: serial blocks of rows, groups of inputs: the codes of a group are decoded once to a
               tile in the first-level cache, and multiplied with all rows of the block

No dense weight is ever in memory. With rounded activations the sums of a group are exact int32.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from tvm import tirx

from .blocks import LANES, block_count, even_group
from .dots import Dots
from .finish import Finish, outputs, put
from .formats import quads_of
from .gemm import FloatTiling, Sums, by_height, tiles
from .rounding import rounded_arguments
from .sources import Codes
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    broadcast,
    by_rows,
    convert,
    index,
    load,
    local,
    only_if,
    parallel,
    prim_func,
    ramp,
    serial,
    store,
    zeros,
)

_FEW = (1, 2, 4, 8)
"""Rows of x whose sums stay in registers while the codes pass by once."""

_FEW_FLOATS = (1, 2)
"""The same of x in floats; of more rows a decoded tile is as fast."""

_QUADS = 4
"""Of an iteration of the loop over a decoded tile."""


@dataclass(frozen=True)
class CodeTiling:
    """How a product of codes is cut up.

    Attributes:
        dots: multiplies quads.
        table: the LLVM intrinsic that looks 16 floats up by the low four bits of 16 int32, where
            there is one.
        floats: of the product with decoded floats.
        group: panels that one task computes.
        panels: panels that are summed at once by the height of a tile of rounded rows.
        chains: independent sums of a single row.
        block: rows that a decoded tile is used for.
    """

    dots: Dots
    floats: FloatTiling
    group: int = 4
    panels: tuple[int, ...] = (2, 1, 1, 1)
    chains: int = 2
    block: int = 128
    table: str | None = None


@dataclass(frozen=True)
class CodeProduct:
    """What one kernel computes.

    Attributes:
        rounded: x comes as int8 codes with a scale and a sum per row and group (see `rounding`).
    """

    out_features: int
    in_features: int
    source: Codes
    rounded: bool


@cache
def code_product(
    spec: CodeProduct,
    tilings: tuple[tuple[int | None, CodeTiling], ...],
    finish: Finish | None = None,
) -> PrimFunc:
    """The PrimFunc `(x, codes, scales, *finish, y)`; x is three buffers if rounded."""
    panels = block_count(spec.out_features)

    def arguments(rows: Expr) -> Sequence[Argument]:
        inputs = [Argument("x", (rows, spec.in_features), "float32")]
        if spec.rounded:
            inputs = rounded_arguments(rows, spec.in_features, spec.source.group)
        weights = spec.source.arguments(panels, spec.in_features)
        return [*inputs, *weights, *outputs(rows, spec.out_features, finish)]

    def body(rows: Expr, *buffers: Buffer) -> None:
        count = 3 if spec.rounded else 1
        given = _Given(spec, buffers[:count], *buffers[count : count + 2])
        stored = buffers[count + 2 :]

        def emit(tiling: CodeTiling, few: int | None) -> None:
            group = even_group(panels, tiling.group)
            with parallel(-(-panels // group)) as number:
                # The last group overlaps the one before instead of being narrower.
                left = bind(tirx.min(number * group, index(panels - group)))

                def finished(row: Expr, panel: int, value: Callable[[Expr], Expr]) -> None:
                    column = (left + panel) * LANES
                    missing = spec.out_features - column if spec.out_features % LANES else None
                    put(stored, finish, row, column, LANES, value, missing)

                task = _Task(given, tiling, group, left, finished)
                if few is None:
                    task.blocks_of_rows(rows)
                else:
                    task.few_rows(rows, few)

        heights: tuple[int, ...] = _FEW if spec.rounded else _FEW_FLOATS
        if spec.source.format.continuous:
            heights = ()
        most_of_few = max(heights, default=0)
        choices = [
            (height, partial(emit, _serving(tilings, height), height)) for height in heights
        ] + [
            (most, partial(emit, tiling, None))
            for most, tiling in tilings
            if most is None or most > most_of_few
        ]
        by_rows(rows, choices, lambda choice: choice())

    return prim_func(arguments, body)


def _serving(tilings: Sequence[tuple[int | None, CodeTiling]], rows: int) -> CodeTiling:
    return next(tiling for most, tiling in tilings if most is None or rows <= most)


@dataclass(frozen=True, eq=False)
class _Given:
    """The inputs of a kernel."""

    spec: CodeProduct
    x: Sequence[Buffer]
    codes: Buffer
    scales: Buffer


Length = int | Expr

_Totals = dict[tuple[int, int], Buffer]
"""The sums of a row and a panel."""


@dataclass(frozen=True, eq=False)
class _Task:
    """Emits what one task does for its panels, from the panel `left` on."""

    given: _Given
    tiling: CodeTiling
    panels: int
    left: Expr
    finished: Callable[[Expr, int, Callable[[Expr], Expr]], None]

    @property
    def source(self) -> Codes:
        return self.given.spec.source

    def _over_groups(self, emit: Callable[[Expr, Length], None]) -> None:
        """Calls `emit` with each group and its length, which is symbolic where one code suffices.

        The last group, if it is not whole, needs code of its own only where it ends inside a unit.
        """
        spec, group = self.given.spec, self.source.group
        full, rest = divmod(spec.in_features, group)
        if rest and full and rest % math.lcm(self.source.format.codes, 4 * _QUADS) == 0:
            with serial(full + 1) as number:
                emit(number, bind(tirx.min(index(group), spec.in_features - number * group)))
            return
        if full:
            with serial(full) as number:
                emit(number, group)
        if rest:
            emit(index(full), rest)

    def _scale(self, plane: Expr | int, panel: int, group: Expr, lane: int, lanes: int) -> Expr:
        return load(self.given.scales, plane, self.left + panel, group, ramp(lane, lanes))

    # A few rows.

    def few_rows(self, rows: Expr, height: int) -> None:
        """All rows at once; what a tile has beyond the last row repeats that and is not stored."""
        wide = max(self.panels // (max(height // 4, 1) * self.source.planes), 1)
        step = self._rounded_group if self.given.spec.rounded else self._float_group
        numbers = [bind(tirx.min(index(row), rows - 1)) for row in range(height)]
        for start in range(0, self.panels, wide):
            panels = range(start, min(start + wide, self.panels))
            totals = {
                (row, panel): local(LANES, "float32") for row in range(height) for panel in panels
            }
            for total in totals.values():
                store(total, zeros("float32", LANES), ramp(0, LANES))
            self._over_groups(partial(step, numbers, panels, totals))
            for (row, panel), total in totals.items():
                with only_if(rows > row):
                    self.finished(index(row), panel, partial(_lane, total, index(0)))

    def _units(self, group: Expr, length: Length, emit: Callable[[Expr, Expr, int], None]) -> None:
        """Calls `emit` with each unit of a group, its first code in the group and its codes."""
        first, _ = self.source.first_quad(group)
        first, each = bind(first), self.source.format.codes
        whole, rest = _parts(length, each)
        with serial(whole) as number:
            emit(first + number, number * each, each)
        if rest:
            emit(first + whole, index(length - rest), rest)

    def _rounded_group(
        self, rows: list[Expr], panels: range, totals: _Totals, group: Expr, length: Length
    ) -> None:
        source, dots = self.source, self.tiling.dots
        codes, scales, sums = self.given.x
        chains, lanes = (self.tiling.chains if len(rows) == 1 else 1), dots.lanes
        every = ramp(0, lanes)
        places = [
            (plane, panel, part)
            for plane in range(source.planes)
            for panel in panels
            for part in range(0, LANES, lanes)
        ]
        held = [
            {place: [local(lanes, "int32") for _ in range(chains)] for place in places}
            for _ in rows
        ]
        for row, mine in zip(rows, held, strict=True):
            correction = broadcast(-source.format.offset * load(sums, row, group), lanes)
            for first, *others in mine.values():
                store(first, correction, every)
                for other in others:
                    store(other, zeros("int32", lanes), every)
        word = bind(group * quads_of(source.group))

        def unit(number: Expr, code: Expr, count: int) -> None:
            start, quads = word + tirx.floordiv(code, index(4)), range(quads_of(count))
            for place in places:
                plane, panel, part = place
                weights = source.quads(
                    self.given.codes, plane, self.left + panel, number, part, lanes
                )
                for row, mine in zip(rows, held, strict=True):
                    x = [broadcast(load(codes, row, start + j), lanes) for j in quads]
                    products = list(zip(weights, x, strict=False))
                    for chain, total in enumerate(mine[place][: len(x)]):
                        value = dots.add(
                            load(total, every), products[chain::chains], source.format.greatest
                        )
                        store(total, value, every)

        self._units(group, length, unit)
        for i, (row, mine) in enumerate(zip(rows, held, strict=True)):
            x_scale = broadcast(load(scales, row, group), lanes)
            for (plane, panel, part), (first, *others) in mine.items():
                total = sum((load(other, every) for other in others), load(first, every))
                value = convert(total, "float32", lanes) * x_scale
                value = value * self._scale(plane, panel, group, part, lanes)
                where = ramp(part, lanes)
                store(totals[i, panel], load(totals[i, panel], where) + value, where)

    def _float_group(
        self, rows: list[Expr], panels: range, totals: _Totals, group: Expr, length: Length
    ) -> None:
        source, (x,) = self.source, self.given.x
        every, chains = ramp(0, LANES), 2 if len(rows) == 1 else 1
        places = [(plane, panel) for plane in range(source.planes) for panel in panels]
        held = [
            {place: [local(LANES, "float32") for _ in range(chains)] for place in places}
            for _ in rows
        ]
        for mine in held:
            for totals_of_place in mine.values():
                for total in totals_of_place:
                    store(total, zeros("float32", LANES), every)
        start = bind(group * source.group)

        def unit(number: Expr, code: Expr, count: int) -> None:
            for place in places:
                codes = self._floats(*place, number)
                for j in range(count):
                    for row, mine in zip(rows, held, strict=True):
                        total = mine[place][j % chains]
                        inputs = broadcast(load(x, row, start + code + j), LANES)
                        store(total, load(total, every) + inputs * codes[j], every)

        self._units(group, length, unit)
        for i, mine in enumerate(held):
            for (plane, panel), (first, *others) in mine.items():
                value = sum((load(other, every) for other in others), load(first, every))
                value = value * self._scale(plane, panel, group, 0, LANES)
                store(totals[i, panel], load(totals[i, panel], every) + value, every)

    def _floats(self, plane: Expr | int, panel: int, unit: Expr) -> list[Expr]:
        """The codes of a unit as floats."""
        source, intrinsic = self.source, self.tiling.table
        words = source.words(self.given.codes, plane, self.left + panel, unit)
        found = source.format.indices(words) if intrinsic else None
        if found is None:
            return [_code(source, quad, j) for quad in source.format.quads(words) for j in range(4)]
        positions = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
        table = convert(source.format.code_of(positions), "float32", LANES)
        return [
            tirx.call_llvm_pure_intrin("float32x16", intrinsic, table, number) for number in found
        ]

    # Several rows.

    def blocks_of_rows(self, rows: Expr) -> None:
        block, source = self.tiling.block, self.source
        totals = local(block * self.panels * LANES, "float32")
        with serial(tirx.floordiv(rows + (block - 1), index(block))) as number:
            first = bind(number * block)
            height = bind(tirx.min(index(block), rows - first))
            with serial(height * self.panels) as i:
                store(totals, zeros("float32", LANES), ramp(i * LANES, LANES))
            if self.given.spec.rounded:
                with serial(source.planes) as plane:
                    self._over_groups(
                        lambda group, length: self._rounded_tile(
                            plane, group, length, first, height, totals
                        )
                    )
            else:
                self._over_groups(
                    lambda group, length: self._float_tile(group, length, first, height, totals)
                )
            with serial(height) as row:
                for panel in range(self.panels):
                    start = (row * self.panels + panel) * LANES
                    self.finished(first + row, panel, partial(_lane, totals, start))

    def _decode(
        self, group: Expr, length: Length, emit: Callable[[Expr, Expr], None]
    ) -> tuple[int, Expr]:
        """Calls `emit` with each unit of a group and its number.

        Returns:
            How many units there may be, and the quad of the first one in which the group starts.
        """
        source = self.source
        first, offset = source.first_quad(group)
        first, offset = bind(first), bind(offset)
        each = source.format.codes // 4
        quads = _quads(length)
        count: Length = (quads + each - 1) // each
        if source.format.continuous:
            count = tirx.min(
                index((quads + 2 * each - 2) // each),
                source.format.units(self.given.spec.in_features) - first,
            )
        with serial(count) as number:
            emit(first + number, number)
        return offset

    def _units_of_tile(self) -> int:
        """Units that a group may touch."""
        codes = self.source.format.codes
        return -(-self.source.group // codes) + self.source.format.continuous

    def _float_tile(
        self,
        group: Expr,
        length: Length,
        first: Expr,
        height: Expr,
        totals: Buffer,
    ) -> None:
        source, panels, (x,) = self.source, self.panels, self.given.x
        codes = source.format.codes
        tile = local(self._units_of_tile() * codes * panels * LANES, "float32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                weights: list[Expr] = []
                for plane in range(source.planes):
                    scale = self._scale(plane, panel, group, 0, LANES)
                    found = [code * scale for code in self._floats(plane, panel, unit)]
                    weights = list(map(operator.add, weights, found)) if weights else found
                for j, weight in enumerate(weights):
                    where = ((number * codes + j) * panels + panel) * LANES
                    store(tile, weight, ramp(where, LANES))

        offset = self._decode(group, length, decode)
        column, skipped = bind(group * source.group), bind(offset * 4)
        sums = Sums(
            self.tiling.floats,
            panels,
            lambda row, k: load(x, row, column + k),
            lambda panel, k: load(tile, ramp(((skipped + k) * panels + panel) * LANES, LANES)),
            totals,
        )
        most = len(self.tiling.floats.panels)
        with tiles(height, most) as (row, tall):
            by_height(
                tall,
                most,
                lambda rows: sums.emit(rows, first + row, index(0), index(length), row, add=True),
            )

    def _rounded_tile(
        self,
        plane: Expr,
        group: Expr,
        length: Length,
        first: Expr,
        height: Expr,
        totals: Buffer,
    ) -> None:
        source, panels = self.source, self.panels
        each = source.format.codes // 4
        tile = local(self._units_of_tile() * each * panels * LANES, "int32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                quads = source.quads(self.given.codes, plane, self.left + panel, unit)
                for j, quad in enumerate(quads):
                    where = ((number * each + j) * panels + panel) * LANES
                    store(tile, quad, ramp(where, LANES))

        offset = self._decode(group, length, decode)
        most = len(self.tiling.panels)

        def emit(rows: int, row: Expr) -> None:
            wide = min(self.tiling.panels[rows - 1], panels)
            for left in range(0, panels, wide):
                columns = range(left, min(left + wide, panels))
                self._rounded_sums(
                    rows, columns, plane, group, length, first, row, tile, offset, totals
                )

        with tiles(height, most) as (row, tall):
            by_height(tall, most, lambda rows: emit(rows, row))

    def _rounded_sums(
        self,
        rows: int,
        columns: range,
        plane: Expr,
        group: Expr,
        length: Length,
        first: Expr,
        row: Expr,
        tile: Buffer,
        offset: Expr,
        totals: Buffer,
    ) -> None:
        """Adds the products of a few rows with a decoded tile, in registers, to the totals."""
        source, dots = self.source, self.tiling.dots
        codes, scales, sums = self.given.x
        lanes, every = dots.lanes, ramp(0, dots.lanes)
        places = [(panel, part) for panel in columns for part in range(0, LANES, lanes)]
        held = [[local(lanes, "int32") for _ in places] for _ in range(rows)]
        for i in range(rows):
            correction = -source.format.offset * load(sums, first + row + i, group)
            for total in held[i]:
                store(total, broadcast(correction, lanes), every)
        word = bind(group * quads_of(source.group))

        def step(start: Expr, count: int) -> None:
            weights = [
                [
                    load(
                        tile,
                        ramp(((offset + start + j) * self.panels + panel) * LANES + part, lanes),
                    )
                    for j in range(count)
                ]
                for panel, part in places
            ]
            for i in range(rows):
                x = [
                    broadcast(load(codes, first + row + i, word + start + j), lanes)
                    for j in range(count)
                ]
                for total, mine in zip(held[i], weights, strict=True):
                    products = list(zip(mine, x, strict=True))
                    value = dots.add(load(total, every), products, source.format.greatest)
                    store(total, value, every)

        quads = _quads(length)
        whole, rest = _parts(quads, _QUADS)
        with serial(whole) as number:
            step(number * _QUADS, _QUADS)
        if rest:
            step(index(quads - rest), rest)
        for i in range(rows):
            x_scale = broadcast(load(scales, first + row + i, group), lanes)
            for total, (panel, part) in zip(held[i], places, strict=True):
                value = convert(load(total, every), "float32", lanes) * x_scale
                value = value * self._scale(plane, panel, group, part, lanes)
                where = ramp(((row + i) * self.panels + panel) * LANES + part, lanes)
                store(totals, load(totals, where) + value, where)


def _code(source: Codes, quad: Expr, j: int) -> Expr:
    """The float of code j of a quad."""
    stored = (quad >> (8 * j)) & 255
    return convert(stored - source.format.offset, "float32", LANES)


def _parts(length: Length, each: int) -> tuple[Length, int]:
    """How many whole parts a length has, and what is left; nothing of a symbolic one."""
    if isinstance(length, int):
        return length // each, length % each
    return length // each, 0


def _quads(length: Length) -> Length:
    return quads_of(length) if isinstance(length, int) else length // 4


def _lane(totals: Buffer, start: Expr, lane: Expr) -> Expr:
    return load(totals, start + lane)
