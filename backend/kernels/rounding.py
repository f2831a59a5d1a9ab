"""`activations=int8`: each row of x in codes −127 … 127 with one scale per group of inputs.

`scale = max|x| / 127` and `code = round(x · (127 / max|x|))`, half to even and all in float32, as
`BlockQuantized.reference` and ONNX Runtime do; a group of zeros has scale 0. Four codes lie in one
int32; each group starts at a fresh word. The sum of a group's codes is kept, since weights are
stored with an offset: `Σ x·w = Σ x·(w + offset) − offset · Σ x`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache

from tvm import tirx

from .base import Output, Step
from .blocks import LANES
from .formats import quads_of
from .tasks import row_by_row
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    broadcast,
    convert,
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


def words_per_row(in_features: int, group: int) -> int:
    """Words of a whole row."""
    full, rest = divmod(in_features, group)
    return full * quads_of(group) + quads_of(rest)


def round_step(in_features: int, group: int) -> Step:
    """`x -> x_codes, x_scales, x_sums`."""
    groups = -(-in_features // group)
    outputs = (
        Output("x_codes", words_per_row(in_features, group), "int32"),
        Output("x_scales", groups, "float32"),
        Output("x_sums", groups, "int32"),
    )
    return Step("round_activations", round_activations(in_features, group), ("x",), outputs)


def rounded_arguments(rows: Expr, in_features: int, group: int) -> list[Argument]:
    """The outputs of `round_step` as inputs of a kernel."""
    groups = -(-in_features // group)
    return [
        Argument("x_codes", (rows, words_per_row(in_features, group)), "int32"),
        Argument("x_scales", (rows, groups), "float32"),
        Argument("x_sums", (rows, groups), "int32"),
    ]


@cache
def round_activations(in_features: int, group: int) -> PrimFunc:
    """The PrimFunc `(x, codes, scales, sums)`: `[rows, in_features]` to words, scales and sums."""
    full, rest = divmod(in_features, group)

    def arguments(rows: Expr) -> Sequence[Argument]:
        x = Argument("x", (rows, in_features), "float32")
        return [x, *rounded_arguments(rows, in_features, group)]

    def body(rows: Expr, x: Buffer, *rounded: Buffer) -> None:
        def one(row: Expr) -> None:
            if full:
                with serial(full) as number:
                    _group(x, rounded, row, number, group, group)
            if rest:
                _group(x, rounded, row, index(full), rest, group)

        row_by_row(rows, in_features, one)

    return prim_func(arguments, body)


def _group(
    x: Buffer, rounded: Sequence[Buffer], row: Expr, group: Expr, length: int, stride: int
) -> None:
    """Rounds `length` inputs of one group; all groups before it have `stride` inputs."""
    codes, scales, sums = rounded
    start, first_word = group * stride, group * quads_of(stride)
    whole = length // LANES
    peaks, inverse = local(LANES, "float32"), local(1, "float32")
    totals = local(LANES, "int32")
    every = ramp(0, LANES)

    def magnitude(k: Expr, lanes: int) -> Expr:
        return tirx.abs(load(x, row, ramp(start + k, lanes)))

    store(peaks, zeros("float32", LANES), every)
    with serial(whole) as i:
        store(peaks, tirx.max(load(peaks, every), magnitude(i * LANES, LANES)), every)
    with serial(length - whole * LANES) as k:
        store(peaks, tirx.max(load(peaks, 0), magnitude(k + whole * LANES, 1)), 0)
    fold(peaks, tirx.max)
    levels, zero = tirx.const(127, "float32"), tirx.const(0, "float32")
    store(scales, load(peaks, 0) / levels, row, group)
    store(inverse, levels / load(peaks, 0), 0)
    # 127 / max overflows for zeros and for denormal peaks: nothing is left of x then.
    overflows = load(inverse, 0) > tirx.max_value("float32")
    store(inverse, tirx.Select(overflows, zero, load(inverse, 0)), 0)

    def codes_at(k: Expr, lanes: int) -> Expr:
        scaled = load(x, row, ramp(start + k, lanes)) * broadcast(load(inverse, 0), lanes)
        return convert(tirx.nearbyint(scaled), "int32", lanes)

    store(totals, zeros("int32", LANES), every)
    quads = LANES // 4
    with serial(whole) as i:
        found = codes_at(i * LANES, LANES)
        store(totals, load(totals, every) + found, every)
        packed = tirx.reinterpret(f"int32x{quads}", convert(found, "int8", LANES))
        store(codes, packed, row, ramp(first_word + i * quads, quads))
    rest = length - whole * LANES
    for word in range(quads_of(rest)):
        value: Expr = tirx.const(0, "int32")
        for j in range(min(4, rest - 4 * word)):
            code = codes_at(index(whole * LANES + 4 * word + j), 1)
            store(totals, load(totals, 0) + code, 0)
            value = value | ((code & 255) << (8 * j))
        store(codes, value, row, first_word + whole * quads + word)
    fold(totals, operator.add)
    store(sums, load(totals, 0), row, group)
