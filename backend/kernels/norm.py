"""`(x − mean) / √(variance + ε)` and `x / √(mean square + ε)` of each row, finished before stored.

parallel  blocks of rows
  serial    a row, which the first-level cache holds: its sums in four chains of 16 lanes, then
            its outputs
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache, partial

from tvm import tirx

from .base import Output, Step
from .blocks import LANES
from .finish import Finish, outputs, put
from .tasks import row_by_row
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    broadcast,
    fold,
    index,
    load,
    local,
    prim_func,
    ramp,
    serial,
    store,
    zeros,
)

_CHAINS = 4


def norm_step(features: int, epsilon: float, *, centered: bool) -> Step:
    """`x -> y`, LayerNorm if centered and RMSNorm if not, both without scale and bias."""
    make = partial(norm, features, epsilon, centered)
    name = "layer_norm" if centered else "rms_norm"
    return Step(name, make(), ("x",), (Output("y", features, "float32"),), make)


@cache
def norm(features: int, epsilon: float, centered: bool, finish: Finish | None = None) -> PrimFunc:
    """The PrimFunc `(x, *finish, y)`."""

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [
            Argument("x", (rows, features), "float32"),
            *outputs(rows, features, finish),
        ]

    def body(rows: Expr, x: Buffer, *stored: Buffer) -> None:
        row_by_row(rows, features, partial(_row, features, epsilon, centered, finish, x, stored))

    return prim_func(arguments, body)


def _row(
    features: int,
    epsilon: float,
    centered: bool,
    finish: Finish | None,
    x: Buffer,
    stored: Sequence[Buffer],
    row: Expr,
) -> None:
    numbers = local(2, "float32")  # the mean, and the factor of what is left of it
    count = tirx.const(float(features), "float32")
    store(numbers, tirx.const(0.0, "float32"), 0)
    if centered:
        store(numbers, _sum(features, lambda k, lanes: load(x, row, ramp(k, lanes))) / count, 0)

    def square(k: Expr, lanes: int) -> Expr:
        value = load(x, row, ramp(k, lanes))
        if centered:
            value = value - broadcast(load(numbers, 0), lanes)
        return value * value

    variance = _sum(features, square) / count + tirx.const(epsilon, "float32")
    store(numbers, tirx.const(1.0, "float32") / tirx.sqrt(variance), 1)

    def value_at(k: Expr, lane: Expr) -> Expr:
        value = load(x, row, k + lane)
        if centered:
            value = value - load(numbers, 0)
        return value * load(numbers, 1)

    whole, rest = divmod(features, LANES)
    with serial(whole) as i:
        put(stored, finish, row, i * LANES, partial(value_at, i * LANES))
    if rest:
        last = index(whole * LANES)
        put(stored, finish, row, last, partial(value_at, last), count=index(rest))


def _sum(features: int, term: Callable[[Expr, int], Expr]) -> Expr:
    """The sum of `features` terms, 16 at a time in four chains, then of those."""
    sums = local(_CHAINS * LANES, "float32")
    for chain in range(_CHAINS):
        store(sums, zeros("float32", LANES), ramp(chain * LANES, LANES))
    step = _CHAINS * LANES

    def add(start: Expr, chain: int) -> None:
        where = ramp(chain * LANES, LANES)
        store(sums, load(sums, where) + term(start, LANES), where)

    whole = features // step
    with serial(whole) as i:
        for chain in range(_CHAINS):
            add(i * step + chain * LANES, chain)
    done = whole * step
    for chain, start in enumerate(range(done, features - LANES + 1, LANES)):
        add(index(start), chain)
    for one, other in ((0, 2), (1, 3), (0, 1)):
        where = ramp(one * LANES, LANES)
        store(sums, load(sums, where) + load(sums, ramp(other * LANES, LANES)), where)
    fold(sums, operator.add)
    for k in range(features // LANES * LANES, features):
        store(sums, load(sums, 0) + term(index(k), 1), 0)
    return load(sums, 0)
