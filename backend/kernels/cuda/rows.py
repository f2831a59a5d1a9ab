"""`Ŵ[indices]`: rows of an embedding, out of the words that the product reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm import tirx

from ..base import Output, Step
from ..tir import Argument, Buffer, Expr, PrimFunc, index, load, only_if, prim_func, store
from .fragments import CHUNK, PAIRED, TILE
from .weights import Coded, Dense, Weights
from .words import WARP, divided, grid, held

_WARPS = 4


def gather_step(
    weights: Weights,
    out_features: int,
    in_features: int,
    index_dtype: str,
    inputs: tuple[str, ...],
) -> Step:
    """`(indices, *weights) -> y`, in the type of the activations."""
    function = gather_rows(weights, out_features, in_features, index_dtype)
    y = Output("y", in_features, weights.activation.dtype)
    return Step("gather", function, inputs, (y,))


@cache
def gather_rows(
    weights: Weights, out_features: int, in_features: int, index_dtype: str
) -> PrimFunc:
    """The PrimFunc `(indices, *weights, y)`: `[count]` to `[count, in_features]`.

    Negative indices count from the end; what is out of bounds is clamped.
    """
    dtype = weights.activation.dtype

    def arguments(count: Expr) -> Sequence[Argument]:
        return [
            Argument("indices", (count,), index_dtype),
            *weights.arguments(1, out_features, in_features),
            Argument("y", (count, in_features), dtype),
        ]

    def body(count: Expr, indices: Buffer, *buffers: Buffer) -> None:
        *source, y = buffers
        blocks = divided(in_features, _WARPS * WARP)
        # Along y and z there may be 65535 blocks only.
        with grid((count, blocks), _WARPS) as ((number, part), warp, lane):
            column = held((part * _WARPS + warp) * WARP + lane)
            wanted = tirx.Cast("int64", load(indices, number))
            positive = tirx.Select(wanted < 0, wanted + out_features, wanted)
            row = held(tirx.max(tirx.min(positive, index(out_features - 1)), index(0)))
            with only_if(column < in_features):
                value = _value(weights, source, row, column)
                store(y, tirx.Cast(dtype, value), number, column)

    return prim_func(arguments, body)


def _value(weights: Weights, source: Sequence[Buffer], row: Expr, column: Expr) -> Expr:
    """One weight, the inverse of `fragments`."""
    inside = held(row % PAIRED)
    position = held(inside % 8 // 2 * 8 + inside // 8 * 2 + inside % 2)
    tile = held(row // PAIRED * 2 + position // TILE)
    chunk, within = held(column // CHUNK), held(column % CHUNK)
    lane = held(position % 8 * 4 + within // 16)
    small, side, last = held(within % 16 // 4), held(position % TILE // 8), held(within % 4)
    if isinstance(weights, Dense):
        place = (small * WARP + lane) * 8 + side * 4 + last
        if weights.activation.bytes == 4:
            place = ((small * 2 + side) * WARP + lane) * 4 + last
        return load(source[0], 0, tile, chunk, place)
    assert isinstance(weights, Coded)
    return _decoded(weights, source, tile, position, chunk, lane, small, side, last, column)


def _decoded(
    weights: Coded,
    source: Sequence[Buffer],
    tile: Expr,
    position: Expr,
    chunk: Expr,
    lane: Expr,
    small: Expr,
    side: Expr,
    last: Expr,
    column: Expr,
) -> Expr:
    codes, scales, unit = source
    pair, half = side * 2 + last // 2, last % 2
    total = tirx.const(0.0, "float32")
    for plane in range(weights.planes):
        stored = index(0)
        done, shift = 0, 0
        for width in weights.sections if weights.bits < 8 else (8,):
            # A section of a word has one bit of each value, of two words two, and so on.
            bits = {1: 1, 2: 2, 4: 4, 8: 8}[width]
            word, place = _place(bits, small, pair)
            inner = min(width, 4)
            number = done * WARP + word // inner * (inner * WARP) + lane * inner + word % inner
            value = tirx.Cast("int64", load(codes, plane, 0, tile, chunk, number))
            field = tirx.bitwise_and(tirx.shift_right(value, place + 16 * half), index(2**bits - 1))
            stored = stored + tirx.shift_left(field, index(shift))
            done, shift = done + width, shift + bits
        scale = weights.scale(scales, plane, index(0), tile, position % TILE, column)
        total = total + tirx.Cast("float32", stored - weights.offset) * scale
    return total * load(unit, 0)


def _place(bits: int, small: Expr, pair: Expr) -> tuple[Expr, Expr]:
    """The word of a section, and the lowest bit, of the pair of a tile."""
    if bits == 1:
        return index(0), small * 4 + pair
    if bits == 2:
        return small // 2, small % 2 * 8 + pair * 2
    if bits == 4:
        return small, pair * 4
    return small * 2 + pair // 2, pair % 2 * 8
