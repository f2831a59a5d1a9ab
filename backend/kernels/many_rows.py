"""Many rows of x: the codes of a group are decoded once to a tile, for all rows of a block."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from .blocks import LANES
from .code_task import QUADS, CodeTask, Length, parts_of, quads_in
from .finish import lane_of
from .formats import quads_of
from .gemm import Sums, by_height, tiles
from .tir import (
    Buffer,
    Expr,
    bind,
    broadcast,
    convert,
    index,
    load,
    local,
    ramp,
    serial,
    store,
    zeros,
)


@dataclass(frozen=True, eq=False)
class ManyRows(CodeTask):
    """Emits the sums of a block of rows, group by group."""

    def emit(self) -> None:
        """Emits the sums of all rows of the task."""
        task = self.task
        totals = local(self.tiling.block * self.panels * LANES, "float32")
        with serial(task.rows * self.panels) as i:
            store(totals, zeros("float32", LANES), ramp(i * LANES, LANES))
        if self.given.spec.rounded:
            with serial(self.source.planes) as plane:
                self.over_groups(partial(self._rounded_tile, totals, plane))
        else:
            self.over_groups(partial(self._float_tile, totals))
        with serial(task.rows) as row:
            for panel in range(self.panels):
                start = (row * self.panels + panel) * LANES
                self.finished(task.first + row, panel, partial(lane_of, totals, start))

    def _decode(self, group: Expr, length: Length, emit: Callable[[Expr, Expr], None]) -> Expr:
        """Calls `emit` with each unit of a group and its number.

        Returns:
            The quad of the first unit in which the group starts.
        """
        source = self.source
        first, offset = source.first_quad(group)
        first, offset = bind(first), bind(offset)
        each = source.format.codes // 4
        quads = quads_in(length)
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

    def _float_tile(self, totals: Buffer, group: Expr, length: Length) -> None:
        source, panels, (x,) = self.source, self.panels, self.given.x
        codes = source.format.codes
        tile = local(self._units_of_tile() * codes * panels * LANES, "float32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                weights: list[Expr] = []
                for plane in range(source.planes):
                    scale = self.scale(plane, panel, group, 0, LANES)
                    found = [code * scale for code in self.floats(plane, panel, unit)]
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
        with tiles(self.task.rows, most) as (row, tall):
            by_height(
                tall,
                self.task.least,
                most,
                lambda rows: sums.emit(
                    rows, self.task.first + row, index(0), index(length), row, add=True
                ),
            )

    def _rounded_tile(self, totals: Buffer, plane: Expr, group: Expr, length: Length) -> None:
        source, panels = self.source, self.panels
        each = source.format.codes // 4
        tile = local(self._units_of_tile() * each * panels * LANES, "int32")

        def decode(unit: Expr, number: Expr) -> None:
            for panel in range(panels):
                quads = source.quads(self.given.codes, plane, self.task.left + panel, unit)
                for j, quad in enumerate(quads):
                    where = ((number * each + j) * panels + panel) * LANES
                    store(tile, quad, ramp(where, LANES))

        offset = self._decode(group, length, decode)
        most = len(self.tiling.panels)

        def emit(rows: int, row: Expr) -> None:
            wide = min(self.tiling.panels[rows - 1], panels)
            for left in range(0, panels, wide):
                columns = range(left, min(left + wide, panels))
                self._rounded_sums(rows, columns, plane, group, length, row, tile, offset, totals)

        with tiles(self.task.rows, most) as (row, tall):
            by_height(tall, self.task.least, most, lambda rows: emit(rows, row))

    def _rounded_sums(
        self,
        rows: int,
        columns: range,
        plane: Expr,
        group: Expr,
        length: Length,
        row: Expr,
        tile: Buffer,
        offset: Expr,
        totals: Buffer,
    ) -> None:
        """Adds the products of a few rows with a decoded tile, in registers, to the totals."""
        source, dots = self.source, self.tiling.dots
        codes, scales, sums = self.given.x
        top = self.task.first + row
        lanes, every = dots.lanes, ramp(0, dots.lanes)
        places = [(panel, part) for panel in columns for part in range(0, LANES, lanes)]
        held = [[local(lanes, "int32") for _ in places] for _ in range(rows)]
        for i in range(rows):
            correction = -source.format.offset * load(sums, top + i, group)
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
                x = [broadcast(load(codes, top + i, word + start + j), lanes) for j in range(count)]
                for total, mine in zip(held[i], weights, strict=True):
                    products = list(zip(mine, x, strict=True))
                    value = dots.add(load(total, every), products, source.format.greatest)
                    store(total, value, every)

        quads = quads_in(length)
        whole, rest = parts_of(quads, QUADS)
        with serial(whole) as number:
            step(number * QUADS, QUADS)
        if rest:
            step(index(quads - rest), rest)
        for i in range(rows):
            x_scale = broadcast(load(scales, top + i, group), lanes)
            for total, (panel, part) in zip(held[i], places, strict=True):
                value = convert(load(total, every), "float32", lanes) * x_scale
                value = value * self.scale(plane, panel, group, part, lanes)
                where = ramp(((row + i) * self.panels + panel) * LANES + part, lanes)
                store(totals, load(totals, where) + value, where)
