"""What the tasks of a product of codes share: its groups, units, scales and decoded floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from .blocks import LANES
from .dots import Dots
from .formats import Fields, Format, quads_of
from .gemm import FloatTiling, Put
from .sources import Codes
from .tasks import Task
from .tir import (
    Buffer,
    Expr,
    bind,
    convert,
    index,
    load,
    ramp,
    serial,
    unknown_zero,
)

QUADS = 4
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

    def serving(self, rows: int) -> CodeTiling:
        """The tiling for up to so many rows."""
        return self


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


@dataclass(frozen=True, eq=False)
class Given:
    """The inputs of a kernel."""

    spec: CodeProduct
    x: Sequence[Buffer]
    codes: Buffer
    scales: Buffer


Length = int | Expr

Totals = dict[tuple[int, int], Buffer]
"""The sums of a row and a panel."""


@dataclass(frozen=True, eq=False)
class CodeTask:
    """Emits what one task does for its rows and panels."""

    given: Given
    tiling: CodeTiling
    task: Task
    finished: Put

    @property
    def panels(self) -> int:
        """How many."""
        return self.task.panels

    @property
    def source(self) -> Codes:
        """Where the weights lie."""
        return self.given.spec.source

    def over_groups(self, emit: Callable[[Expr, Length], None]) -> None:
        """Calls `emit` with each group and its length.

        A length is symbolic, so that LLVM does not unroll the loops over it, unless a group ends
        inside a unit and needs code of its own.
        """
        spec, group = self.given.spec, self.source.group
        full, rest = divmod(spec.in_features, group)
        unit = math.lcm(self.source.format.codes, 4 * QUADS)
        whole: Length = group if group % unit else bind(index(group) + unknown_zero(self.task.rows))
        if rest and full and rest % unit == 0 and group % unit == 0:
            with serial(full + 1) as number:
                emit(number, bind(tirx.min(whole, spec.in_features - number * group)))
            return
        if full:
            with serial(full) as number:
                emit(number, whole)
        if rest:
            emit(index(full), rest)

    def scale(self, plane: Expr | int, panel: int, group: Expr, lane: int, lanes: int) -> Expr:
        """The scales of some outputs of a panel."""
        return load(self.given.scales, plane, self.task.left + panel, group, ramp(lane, lanes))

    def units(self, group: Expr, length: Length, emit: Callable[[Expr, Expr, int], None]) -> None:
        """Calls `emit` with each unit of a group, its first code in the group and its codes."""
        first, _ = self.source.first_quad(group)
        first, each = bind(first), self.source.format.codes
        whole, rest = parts_of(length, each)
        with serial(whole) as number:
            emit(first + number, number * each, each)
        if rest:
            emit(first + whole, index(length - rest), rest)

    def floats(self, plane: Expr | int, panel: int, unit: Expr) -> list[Expr]:
        """The codes of a unit as floats."""
        stored, lookup = self.source.format, self.tiling.table
        words = self.source.words(self.given.codes, plane, self.task.left + panel, unit)
        if lookup is None or not isinstance(stored, Fields):
            return [_code(stored, quad, j) for quad in stored.quads(words) for j in range(4)]
        positions = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
        table = convert(stored.code_of(positions), "float32", LANES)
        return [
            tirx.call_llvm_pure_intrin("float32x16", lookup, table, place)
            for place in stored.indices(words)
        ]


def _code(stored: Format, quad: Expr, j: int) -> Expr:
    """The float of code j of a quad."""
    return convert(((quad >> (8 * j)) & 255) - stored.offset, "float32", LANES)


def parts_of(length: Length, each: int) -> tuple[Length, int]:
    """How many whole parts a length has, and what is left; nothing of a symbolic one."""
    if isinstance(length, int):
        return length // each, length % each
    return length // each, 0


def quads_in(length: Length) -> Length:
    """Quads that hold so many codes."""
    return quads_of(length) if isinstance(length, int) else length // 4
