"""The inner loops: decode a tile of weights, and multiply it with a few rows of x in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from .blocks import LANES
from .tir import Buffer, Expr, broadcast, convert, load, local, ramp, serial, store, zeros

_CHAINS = 4
"""Independent sums where only one row of x is at hand: an addition takes about four cycles."""

_STEP = 4
"""Inputs that one iteration of the inner loop multiplies."""


@dataclass(frozen=True)
class Tiling:
    """How a kernel is cut up for one family of CPUs.

    Attributes:
        rows: rows of x at a time, largest first, down to 1.
        add_pairs: the LLVM intrinsic `int16 [2n], int16 [2n] -> int32 [n]` that adds the products
            of neighbours, where there is one.
        pair_lanes: its n.
    """

    rows: tuple[int, ...] = (4, 1)
    add_pairs: str | None = None
    pair_lanes: int = LANES


def float_tile(decode: Callable[[Expr], list[Expr]], units: int, codes: int) -> Buffer:
    """Decodes `units` units of `codes` codes into floats `[units · codes, 16]`."""
    tile = local(units * codes * LANES, "float32")
    with serial(units) as unit:
        for j, code in enumerate(decode(unit)):
            value = convert(code, "float32", LANES)
            store(tile, value, ramp((unit * codes + j) * LANES, LANES))
    return tile


def pair_tile(decode: Callable[[Expr], list[Expr]], units: int, codes: int) -> Buffer:
    """Decodes units into int32 `[ceil(units · codes / 2), 16]`: two int16 codes in each word."""
    together = 1 if codes % 2 == 0 else 2
    words = together * codes // 2
    tile = local(-(-units * codes // 2) * LANES, "int32")

    def emit(step: Expr, decoded: list[Expr]) -> None:
        decoded = decoded + [zeros("int32", LANES)] * (len(decoded) % 2)
        for j, (even, odd) in enumerate(zip(decoded[::2], decoded[1::2], strict=True)):
            store(tile, word(even, odd), ramp((step * words + j) * LANES, LANES))

    with serial(units // together) as step:
        emit(step, [code for j in range(together) for code in decode(step * together + j)])
    if units % together:
        last = tirx.const(units // together, "int64")
        emit(last, decode(last * together))
    return tile


def word(even: Expr, odd: Expr) -> Expr:
    """Two int32 of 16 bits in one: the even one in the low half."""
    return (even & 0xFFFF) | (odd << 16)


def dot_floats(
    rows: int,
    count: int,
    x_at: Callable[[int, Expr], Expr],
    weights_at: Callable[[Expr], Expr],
) -> list[Expr]:
    """`Σ_k x[row, k] · w[k, 16]` for each of `rows` rows."""

    def multiply_add(total: Expr, row: int, k: Expr, weights: Expr) -> Expr:
        return total + broadcast(x_at(row, k), LANES) * weights

    return _dot(rows, count, "float32", LANES, weights_at, multiply_add)


def dot_pairs(
    rows: int,
    pairs: int,
    x_at: Callable[[int, Expr], Expr],
    tile: Buffer,
    tiling: Tiling,
) -> list[Expr]:
    """The same over words of two int16 each; the sums are exact int32."""
    lanes = tiling.pair_lanes
    totals = local(rows * LANES, "int32")
    for part in range(0, LANES, lanes):

        def weights_at(k: Expr, part: int = part) -> Expr:
            return load(tile, ramp(k * LANES + part, lanes))

        def multiply_add(total: Expr, row: int, k: Expr, weights: Expr) -> Expr:
            return total + _add_pairs(broadcast(x_at(row, k), lanes), weights, tiling)

        sums = _dot(rows, pairs, "int32", lanes, weights_at, multiply_add)
        for row, total in enumerate(sums):
            store(totals, total, ramp(row * LANES + part, lanes))
    return [load(totals, ramp(row * LANES, LANES)) for row in range(rows)]


def _add_pairs(x: Expr, weights: Expr, tiling: Tiling) -> Expr:
    if tiling.add_pairs is None:
        low = ((x << 16) >> 16) * ((weights << 16) >> 16)
        return low + (x >> 16) * (weights >> 16)
    halves = f"int16x{2 * tiling.pair_lanes}"
    return tirx.call_llvm_pure_intrin(
        f"int32x{tiling.pair_lanes}",
        tiling.add_pairs,
        tirx.reinterpret(halves, x),
        tirx.reinterpret(halves, weights),
    )


def _dot(
    rows: int,
    count: int,
    dtype: str,
    lanes: int,
    weights_at: Callable[[Expr], Expr],
    multiply_add: Callable[[Expr, int, Expr, Expr], Expr],
) -> list[Expr]:
    chains = _CHAINS if rows == 1 else 1
    sums = local(rows * chains * lanes, dtype)

    def place(row: int, chain: int) -> Expr:
        return ramp((row * chains + chain) * lanes, lanes)

    def step(k: Expr, chain: int) -> None:
        weights = weights_at(k)
        for row in range(rows):
            where = place(row, chain)
            store(sums, multiply_add(load(sums, where), row, k, weights), where)

    for row in range(rows):
        for chain in range(chains):
            store(sums, zeros(dtype, lanes), place(row, chain))
    with serial(count // _STEP) as start:
        for j in range(_STEP):
            step(start * _STEP + j, j % chains)
    for k in range(count // _STEP * _STEP, count):
        step(tirx.const(k, "int64"), k % chains)
    return [
        sum(
            (load(sums, place(row, chain)) for chain in range(1, chains)), load(sums, place(row, 0))
        )
        for row in range(rows)
    ]
