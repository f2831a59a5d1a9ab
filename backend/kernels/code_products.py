"""`y = x Ŵᵀ` with Ŵ in packed codes.

    parallel  groups of panels of 16 outputs
      one row: every word is decoded in registers and multiplied at once
      several: serial blocks of rows, groups of inputs: the codes of a group are decoded once to a
               tile in the first-level cache, and multiplied with all rows of the block

No dense weight is ever in memory. With rounded activations the sums of a group are exact int32.
"""

from __future__ import annotations

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
    parallel,
    prim_func,
    ramp,
    serial,
    store,
    zeros,
)

_QUADS = 4
"""Of an iteration of the loop over a decoded tile."""


@dataclass(frozen=True)
class CodeTiling:
    """How a product of codes is cut up.

    Attributes:
        dots: multiplies quads.
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
    block: int = 64


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

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """First group, number of groups and inputs of each: the whole ones and the rest."""
        full, rest = divmod(self.in_features, self.source.group)
        parts = [(0, full, self.source.group), (full, 1, rest)]
        return [(first, count, length) for first, count, length in parts if count and length]


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

        def emit(tiling: CodeTiling, *, single: bool) -> None:
            group = even_group(panels, tiling.group)
            with parallel(-(-panels // group)) as number:
                # The last group overlaps the one before instead of being narrower.
                left = bind(tirx.min(number * group, index(panels - group)))

                def finished(row: Expr, panel: int, value: Callable[[Expr], Expr]) -> None:
                    column = (left + panel) * LANES
                    missing = spec.out_features - column if spec.out_features % LANES else None
                    put(stored, finish, row, column, LANES, value, missing)

                task = _Task(given, tiling, group, left, finished)
                if single:
                    task.one_row()
                else:
                    task.blocks_of_rows(rows)

        single = not spec.source.format.continuous
        choices: list[tuple[int | None, Callable[[], None]]] = []
        if single:
            choices.append((1, partial(emit, tilings[0][1], single=True)))
        choices += [
            (most, partial(emit, tiling, single=False))
            for most, tiling in tilings
            if not (single and most == 1)
        ]
        by_rows(rows, choices, lambda choice: choice())

    return prim_func(arguments, body)


@dataclass(frozen=True, eq=False)
class _Given:
    """The inputs of a kernel."""

    spec: CodeProduct
    x: Sequence[Buffer]
    codes: Buffer
    scales: Buffer


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

    def _over_groups(self, emit: Callable[[Expr, int], None]) -> None:
        for first, count, length in self.given.spec.groups:
            with serial(count) as number:
                emit(bind(number + first), length)

    def _scale(self, plane: Expr | int, panel: int, group: Expr, lane: int, lanes: int) -> Expr:
        return load(self.given.scales, plane, self.left + panel, group, ramp(lane, lanes))

    # One row.

    def one_row(self) -> None:
        totals = [local(LANES, "float32") for _ in range(self.panels)]
        for total in totals:
            store(total, zeros("float32", LANES), ramp(0, LANES))
        step = self._rounded_group if self.given.spec.rounded else self._float_group
        self._over_groups(lambda group, length: step(group, length, totals))
        for panel, total in enumerate(totals):
            self.finished(index(0), panel, partial(_lane, total, index(0)))

    def _units(self, group: Expr, length: int, emit: Callable[[Expr, Expr, int], None]) -> None:
        """Calls `emit` with each unit of a group, its first code in the group and its codes."""
        first, _ = self.source.first_quad(group)
        first, each = bind(first), self.source.format.codes
        whole, rest = divmod(length, each)
        if whole:
            with serial(whole) as number:
                emit(first + number, number * each, each)
        if rest:
            emit(first + whole, index(whole * each), rest)

    def _rounded_group(self, group: Expr, length: int, totals: list[Buffer]) -> None:
        source, dots = self.source, self.tiling.dots
        codes, scales, sums = self.given.x
        chains, lanes = self.tiling.chains, dots.lanes
        parts = range(0, LANES, lanes)
        every = ramp(0, lanes)
        held = {
            (plane, panel, part, chain): local(lanes, "int32")
            for plane in range(source.planes)
            for panel in range(self.panels)
            for part in parts
            for chain in range(chains)
        }
        correction = -source.format.offset * load(sums, 0, group)
        for (_, _, _, chain), total in held.items():
            start = broadcast(correction, lanes) if chain == 0 else zeros("int32", lanes)
            store(total, start, every)
        word = bind(group * quads_of(source.group))

        def unit(number: Expr, code: Expr, count: int) -> None:
            first = word + tirx.floordiv(code, index(4))
            x = [broadcast(load(codes, 0, first + j), lanes) for j in range(quads_of(count))]
            for plane in range(source.planes):
                for panel in range(self.panels):
                    for part in parts:
                        quads = source.quads(
                            self.given.codes, plane, self.left + panel, number, part, lanes
                        )
                        products = list(zip(quads, x, strict=False))
                        for chain in range(min(chains, len(x))):
                            total = held[plane, panel, part, chain]
                            mine = products[chain::chains]
                            value = dots.add(load(total, every), mine, source.format.greatest)
                            store(total, value, every)

        self._units(group, length, unit)
        x_scale = load(scales, 0, group)
        for plane in range(source.planes):
            for panel in range(self.panels):
                for part in parts:
                    total = sum(
                        (
                            load(held[plane, panel, part, chain], every)
                            for chain in range(1, chains)
                        ),
                        load(held[plane, panel, part, 0], every),
                    )
                    value = convert(total, "float32", lanes) * broadcast(x_scale, lanes)
                    value = value * self._scale(plane, panel, group, part, lanes)
                    where = ramp(part, lanes)
                    store(totals[panel], load(totals[panel], where) + value, where)

    def _float_group(self, group: Expr, length: int, totals: list[Buffer]) -> None:
        source, (x,) = self.source, self.given.x
        every = ramp(0, LANES)
        held = {
            (plane, panel, chain): local(LANES, "float32")
            for plane in range(source.planes)
            for panel in range(self.panels)
            for chain in range(2)
        }
        for total in held.values():
            store(total, zeros("float32", LANES), every)
        start = bind(group * source.group)

        def unit(number: Expr, code: Expr, count: int) -> None:
            for plane in range(source.planes):
                for panel in range(self.panels):
                    quads = source.quads(self.given.codes, plane, self.left + panel, number)
                    for j in range(count):
                        total = held[plane, panel, j % 2]
                        inputs = broadcast(load(x, 0, start + code + j), LANES)
                        value = load(total, every) + inputs * _code(source, quads, j)
                        store(total, value, every)

        self._units(group, length, unit)
        for plane in range(source.planes):
            for panel in range(self.panels):
                both = load(held[plane, panel, 0], every) + load(held[plane, panel, 1], every)
                value = both * self._scale(plane, panel, group, 0, LANES)
                store(totals[panel], load(totals[panel], every) + value, every)

    # Several rows.

    def blocks_of_rows(self, rows: Expr) -> None:
        block, source = self.tiling.block, self.source
        totals = local(block * self.panels * LANES, "float32")
        with serial(tirx.floordiv(rows + (block - 1), index(block))) as number:
            first = bind(number * block)
            height = bind(tirx.min(index(block), rows - first))
            with serial(height * self.panels) as i:
                store(totals, zeros("float32", LANES), ramp(i * LANES, LANES))
            multiply = self._rounded_tile if self.given.spec.rounded else self._float_tile
            with serial(source.planes) as plane:
                self._over_groups(
                    lambda group, length: multiply(plane, group, length, first, height, totals)
                )
            with serial(height) as row:
                for panel in range(self.panels):
                    start = (row * self.panels + panel) * LANES
                    self.finished(first + row, panel, partial(_lane, totals, start))

    def _decode(
        self, group: Expr, length: int, emit: Callable[[Expr, Expr], None]
    ) -> tuple[int, Expr]:
        """Calls `emit` with each unit of a group and its number.

        Returns:
            How many units there may be, and the quad of the first one in which the group starts.
        """
        source = self.source
        first, offset = source.first_quad(group)
        first, offset = bind(first), bind(offset)
        each = source.format.codes // 4
        most = -(-quads_of(length) // each)
        count: Expr = index(most)
        if source.format.continuous:
            most = -(-(quads_of(length) + each - 1) // each)
            count = tirx.min(index(most), source.format.units(self.given.spec.in_features) - first)
        with serial(count) as number:
            emit(first + number, number)
        return most, offset

    def _float_tile(
        self,
        plane: Expr,
        group: Expr,
        length: int,
        first: Expr,
        height: Expr,
        totals: Buffer,
    ) -> None:
        source, panels, (x,) = self.source, self.panels, self.given.x
        codes = source.format.codes
        units = -(-length // codes) + source.format.continuous
        tile = local(units * codes * panels * LANES, "float32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                scale = self._scale(plane, panel, group, 0, LANES)
                quads = source.quads(self.given.codes, plane, self.left + panel, unit)
                for j in range(codes):
                    where = ((number * codes + j) * panels + panel) * LANES
                    store(tile, _code(source, quads, j) * scale, ramp(where, LANES))

        _, offset = self._decode(group, length, decode)
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
        length: int,
        first: Expr,
        height: Expr,
        totals: Buffer,
    ) -> None:
        source, panels = self.source, self.panels
        each = source.format.codes // 4
        units = -(-quads_of(length) // each) + source.format.continuous
        tile = local(units * each * panels * LANES, "int32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                quads = source.quads(self.given.codes, plane, self.left + panel, unit)
                for j, quad in enumerate(quads):
                    where = ((number * each + j) * panels + panel) * LANES
                    store(tile, quad, ramp(where, LANES))

        _, offset = self._decode(group, length, decode)
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
        length: int,
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

        whole, rest = divmod(quads_of(length), _QUADS)
        if whole:
            with serial(whole) as number:
                step(number * _QUADS, _QUADS)
        if rest:
            step(index(whole * _QUADS), rest)
        for i in range(rows):
            x_scale = broadcast(load(scales, first + row + i, group), lanes)
            for total, (panel, part) in zip(held[i], places, strict=True):
                value = convert(load(total, every), "float32", lanes) * x_scale
                value = value * self._scale(plane, panel, group, part, lanes)
                where = ramp(((row + i) * self.panels + panel) * LANES + part, lanes)
                store(totals, load(totals, where) + value, where)


def _code(source: Codes, quads: list[Expr], j: int) -> Expr:
    """The float of code j of a unit."""
    stored = (quads[j // 4] >> (8 * (j % 4))) & 255
    return convert(stored - source.format.offset, "float32", LANES)


def _lane(totals: Buffer, start: Expr, lane: Expr) -> Expr:
    return load(totals, start + lane)
