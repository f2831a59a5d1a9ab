"""A few rows of x: the codes are decoded in registers and multiplied at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx

from .blocks import LANES, SHORT_PANEL
from .code_task import CodeTask, Length, Totals
from .finish import lane_of
from .formats import quads_of
from .tir import (
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
class FewRows(CodeTask):
    """Emits the sums of a few rows, which stay in registers while the codes pass by once."""

    def emit(self, height: int) -> None:
        """All rows at once; what a tile has beyond the last row repeats that and is not stored."""
        rows = self.task.rows
        # Registers of fewer lanes hold fewer sums.
        halves = LANES // self.tiling.dots.lanes if self.given.spec.rounded else 1
        wide = max(self.panels // (max(height // 4, 1) * self.source.planes * halves), 1)
        if height == 1 and self.source.panel_bytes(self.given.spec.in_features) < SHORT_PANEL:
            wide = 1
        numbers = [bind(tirx.min(index(row), rows - 1)) for row in range(height)]
        times, rest = divmod(self.panels, wide)
        with serial(times) as number:
            self._beside(numbers, bind(number * wide), wide)
        if rest:
            self._beside(numbers, index(times * wide), rest)

    def _beside(self, numbers: list[Expr], start: Expr, count: int) -> None:
        """All rows with some of the panels, side by side."""
        task = replace(self.task, left=bind(self.task.left + start), panels=count)
        part = replace(self, task=task)
        step = part._rounded_group if self.given.spec.rounded else part._float_group
        totals = {
            (row, panel): local(LANES, "float32")
            for row in range(len(numbers))
            for panel in range(count)
        }
        for total in totals.values():
            store(total, zeros("float32", LANES), ramp(0, LANES))
        self.over_groups(partial(step, numbers, totals))
        # Finished in a loop: unrolled, that is most of the code where an activation is in it.
        together = local(len(totals) * LANES, "float32")
        for (row, panel), total in totals.items():
            where = ramp((row * count + panel) * LANES, LANES)
            store(together, load(total, ramp(0, LANES)), where)
        with serial(task.rows) as row:
            for panel in range(count):
                place = (row * count + panel) * LANES
                self.finished(row, start + panel, partial(lane_of, together, place))

    def _rounded_group(self, rows: list[Expr], totals: Totals, group: Expr, length: Length) -> None:
        source, dots = self.source, self.tiling.dots
        codes, scales, sums = self.given.x
        chains, lanes = (self.tiling.chains if len(rows) == 1 else 1), dots.lanes
        every = ramp(0, lanes)
        places = [
            (plane, panel, part)
            for plane in range(source.planes)
            for panel in range(self.panels)
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
                    self.given.codes, plane, self.task.left + panel, number, part, lanes
                )
                for row, mine in zip(rows, held, strict=True):
                    x = [broadcast(load(codes, row, start + j), lanes) for j in quads]
                    products = list(zip(weights, x, strict=False))
                    for chain, total in enumerate(mine[place][: len(x)]):
                        value = dots.add(
                            load(total, every), products[chain::chains], source.format.greatest
                        )
                        store(total, value, every)

        self.units(group, length, unit)
        for i, (row, mine) in enumerate(zip(rows, held, strict=True)):
            x_scale = broadcast(load(scales, row, group), lanes)
            for (plane, panel, part), (first, *others) in mine.items():
                total = sum((load(other, every) for other in others), load(first, every))
                value = convert(total, "float32", lanes) * x_scale
                value = value * self.scale(plane, panel, group, part, lanes)
                where = ramp(part, lanes)
                store(totals[i, panel], load(totals[i, panel], where) + value, where)

    def _float_group(self, rows: list[Expr], totals: Totals, group: Expr, length: Length) -> None:
        source, (x,) = self.source, self.given.x
        every, chains = ramp(0, LANES), 2 if len(rows) == 1 else 1
        places = [(plane, panel) for plane in range(source.planes) for panel in range(self.panels)]
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
                codes = self.floats(*place, number)
                for j in range(count):
                    for row, mine in zip(rows, held, strict=True):
                        total = mine[place][j % chains]
                        inputs = broadcast(load(x, row, start + code + j), LANES)
                        store(total, load(total, every) + inputs * codes[j], every)

        self.units(group, length, unit)
        for i, mine in enumerate(held):
            for (plane, panel), (first, *others) in mine.items():
                value = sum((load(other, every) for other in others), load(first, every))
                value = value * self.scale(plane, panel, group, 0, LANES)
                store(totals[i, panel], load(totals[i, panel], every) + value, every)
