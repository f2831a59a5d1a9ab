"""`activations=int8`: each row of x in codes −127 … 127 with one scale per group of inputs.

`scale = max|x| / 127` and `code = round(x · (127 / max|x|))`, half to even and all in float32, as
`BlockQuantized.reference` and ONNX Runtime do; a group of zeros has scale 0. Two codes
lie in one int32, as 16 bits each; each group starts at a fresh word.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm import tirx

from .blocks import LANES
from .dots import word
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
    zeros,
)


def pairs(count: int) -> int:
    """Words that hold `count` codes."""
    return -(-count // 2)


def words_per_row(in_features: int, group: int) -> int:
    """Words of a whole row."""
    full, rest = divmod(in_features, group)
    return full * pairs(group) + pairs(rest)


@cache
def round_activations(in_features: int, group: int) -> PrimFunc:
    """The PrimFunc `(x, codes, scales)`: `[rows, in_features]` to int32 words and scales."""
    full, rest = divmod(in_features, group)

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [
            Argument("x", (rows, in_features), "float32"),
            Argument("codes", (rows, words_per_row(in_features, group)), "int32"),
            Argument("scales", (rows, full + (rest > 0)), "float32"),
        ]

    def body(rows: Expr, x: Buffer, codes: Buffer, scales: Buffer) -> None:
        with parallel(rows) as row:
            if full:
                with serial(full) as i:
                    _group(x, codes, scales, row, i, group, group)
            if rest:
                _group(x, codes, scales, row, index(full), rest, group)

    return prim_func(arguments, body)


def _group(
    x: Buffer, codes: Buffer, scales: Buffer, row: Expr, group: Expr, length: int, stride: int
) -> None:
    """Rounds `length` inputs of one group; all groups before it have `stride` inputs."""
    start, first_word = group * stride, group * pairs(stride)
    whole = length // LANES
    peaks, inverse = local(LANES, "float32"), local(1, "float32")
    every = ramp(0, LANES)

    def magnitude(k: Expr, lanes: int) -> Expr:
        return tirx.abs(load(x, row, ramp(start + k, lanes)))

    store(peaks, zeros("float32", LANES), every)
    with serial(whole) as i:
        store(peaks, tirx.max(load(peaks, every), magnitude(i * LANES, LANES)), every)
    with serial(length - whole * LANES) as k:
        store(peaks, tirx.max(load(peaks, 0), magnitude(k + whole * LANES, 1)), 0)
    for lane in range(1, LANES):
        store(peaks, tirx.max(load(peaks, 0), load(peaks, lane)), 0)
    levels, zero = tirx.const(127, "float32"), tirx.const(0, "float32")
    store(scales, load(peaks, 0) / levels, row, group)
    store(inverse, levels / load(peaks, 0), 0)
    # 127 / max overflows for zeros and for denormal peaks: nothing is left of x then.
    overflows = load(inverse, 0) > tirx.max_value("float32")
    store(inverse, tirx.Select(overflows, zero, load(inverse, 0)), 0)

    def rounded(k: Expr, lanes: int) -> Expr:
        scaled = load(x, row, ramp(start + k, lanes)) * broadcast(load(inverse, 0), lanes)
        return convert(tirx.nearbyint(scaled), "int32", lanes)

    with serial(whole) as i:
        halves = convert(rounded(i * LANES, LANES), "int16", LANES)
        pair_lanes = LANES // 2
        packed = tirx.reinterpret(f"int32x{pair_lanes}", halves)
        store(codes, packed, row, ramp(first_word + i * pair_lanes, pair_lanes))
    with serial(length // 2 - whole * LANES // 2) as i:
        k = i * 2 + whole * LANES
        store(codes, word(rounded(k, 1), rounded(k + 1, 1)), row, first_word + k // 2)
    if length % 2:
        last = word(rounded(index(length - 1), 1), tirx.const(0, "int32"))
        store(codes, last, row, first_word + length // 2)
