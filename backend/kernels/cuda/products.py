"""The PrimFunc of a product: ordered rules choose its kernel by the number of rows at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from ..base import Output, Step
from ..finish import Finish
from ..gpu import has_warpgroups
from ..targets import recorded, tell
from ..tir import Argument, Buffer, Expr, PrimFunc, by_rows, prim_func
from .few_rows import FewRowsTiling, emit_few_rows
from .many_rows import ManyRowsTiling, emit_many_rows
from .product import Product
from .tiling_checks import check_launch
from .warpgroup_rows import WarpgroupRowsTiling, emit_warpgroup_rows
from .words import WARP

Tiling = FewRowsTiling | ManyRowsTiling | WarpgroupRowsTiling

Rules = tuple[tuple[int | None, Tiling], ...]
"""Tilings, each with the greatest number of rows that it serves; the last one all."""

MANY = 2048
"""Rows at which the tiling that serves all is measured, and by which its records are kept."""


@dataclass(frozen=True)
class Ruled:
    """A product whose tilings can be measured.

    Attributes:
        product: to cut up.
        warpgroups: whether it may use instructions of a warpgroup.
    """

    product: Product
    warpgroups: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of rows that a tiling is chosen for."""
        return tuple(most or MANY for most, _ in tilings(self.product, self.warpgroups))

    def serving(self, rows: int) -> Tiling:
        """The rules' own tiling for one of these numbers."""
        rules = tilings(self.product, self.warpgroups)
        return dict(zip(self.rows, rules, strict=True))[rows][1]


_WIDE = 8192
"""Outputs from which two tiles a block leave enough blocks for all multiprocessors."""

_AHEAD_BYTES = 72 * 1024
"""Of weights and scales that a block has under way; one such block fits on every GPU."""

_TURN_BYTES = 8192
"""Of weights that the warps of a block multiply before they wait for the next inputs of x."""

_SQUARE = WarpgroupRowsTiling(warpgroups=2, height=128, tiles=1, stages=6)
"""128 rows by 128 outputs a block."""

_TALL = WarpgroupRowsTiling(warpgroups=2, height=256, tiles=1, stages=4)
"""Twice the rows for each decoded weight, in half as many blocks."""

_FEW_TALL, _NARROW = 512, 2048
"""Rows up to which, and outputs below which, tall blocks are too few for all multiprocessors."""


def tilings(product: Product, warpgroups: bool = False) -> Rules:
    """How a product is cut up for each number of rows: what fits into registers without spilling.

    Of float32 every value is a register, so warps have smaller shares of the result there; codes
    take registers to decode.

    Args:
        product: to cut up.
        warpgroups: whether it may use instructions of a warpgroup, of which float32 has none.
    """
    if product.activation.bytes == 4:
        low = ManyRowsTiling(row_warps=1, column_warps=4, eights=2, tiles=1, stages=2)
        many = ManyRowsTiling(row_warps=2, column_warps=4, eights=4, tiles=1, stages=2)
    else:
        low = ManyRowsTiling(row_warps=1, column_warps=4, eights=4, tiles=1, stages=4)
        many = ManyRowsTiling(row_warps=2, column_warps=2, eights=8, tiles=4, stages=3)
        if product.weights.scaled:
            many = ManyRowsTiling(row_warps=2, column_warps=4, eights=8, tiles=2, stages=3)
    common = ((8, _few(product, 1)), (16, _few(product, 2)), (64, low))
    if not warpgroups or product.activation.bytes == 4:
        return (*common, (None, many))
    if product.blocks * product.width < _NARROW:
        return (*common, (None, _SQUARE))
    return (*common, (_FEW_TALL, _SQUARE), (None, _TALL))


def _few(product: Product, eights: int) -> FewRowsTiling:
    """The tiling for up to `8 · eights` rows, which is to keep memory busy.

    Inputs are divided over the warps of a block and not over blocks, by a count for an H100 that
    was not measured: 132 multiprocessors, 3.35 TB/s, 700 ns to memory, 250 to the second cache.
    Memory is busy with 18 KB under way in each multiprocessor; a block of codes of four bits has
    64 KB. Its warps multiply 8 KB in the time that x of the next chunks takes, 33 KB in a
    microsecond, so that 102 blocks, 1632 outputs, read as fast as memory gives. The 64 blocks of
    1024x4096 take 1.06 µs for what memory gives in 0.67, the 36 of 576x576 take 0.16 for 0.06. To
    add up sums of several blocks takes longer than that: a store, an atomic and a load through the
    second cache, one after the other.
    """
    weights, outputs = product.weights, product.blocks * product.width
    tiles = 1 if product.activation.bytes == 4 or outputs < _WIDE else 2
    chunk_bytes = tiles * weights.planes * weights.words * 4 * WARP
    # Of more registers for x ptxas keeps some in memory where a block has more warps.
    few_registers = eights == 1 and product.activation.bytes == 2
    warps = 16 if few_registers and 8 * chunk_bytes < _TURN_BYTES else 8
    tiling = FewRowsTiling(eights=eights, ahead=2, warps=warps, tiles=tiles)
    slots = _AHEAD_BYTES // (4 * warps * tiling.slot_words(weights))
    return replace(tiling, ahead=min(max(slots // 2 * 2, 2), 8))


def chosen(product: Product) -> Rules:
    """The rules' tilings with the fields of the product's records; `asked` is told of it.

    Raises:
        LoweringError: a record is of no tiling, or of one that the target does not launch.
    """
    warpgroups = has_warpgroups()
    tell(product.workload, Ruled(product, warpgroups))
    launched = partial(check_launch, weights=product.weights)
    return tuple(
        (most, recorded(tiling, (*product.workload, most or MANY), launched))
        for most, tiling in tilings(product, warpgroups)
    )


@cache
def product_function(product: Product, rules: Rules, finish: Finish | None = None) -> PrimFunc:
    """The PrimFunc `(x, *weights, *finish, y)` over a symbolic number of rows."""

    def arguments(rows: Expr) -> Sequence[Argument]:
        return product.arguments(rows, finish)

    def body(rows: Expr, *buffers: Buffer) -> None:
        def emit(tiling: Tiling, least: int, most: int | None) -> None:
            if isinstance(tiling, FewRowsTiling):
                emit_few_rows(product, tiling, finish, rows, buffers)
            elif isinstance(tiling, ManyRowsTiling):
                emit_many_rows(product, tiling, finish, rows, buffers)
            else:
                emit_warpgroup_rows(product, tiling, finish, rows, buffers)

        by_rows(rows, rules, emit)

    return prim_func(arguments, body)


def product_step(name: str, product: Product, inputs: tuple[str, ...], output: str = "y") -> Step:
    """The step `(*inputs) -> output`; it takes a finish where outputs stay in order."""
    make: Callable[..., PrimFunc] = partial(product_function, product, chosen(product))
    y = Output(output, product.columns, product.activation.dtype)
    return Step(name, make(), inputs, (y,), make if product.scatter is None else None)
