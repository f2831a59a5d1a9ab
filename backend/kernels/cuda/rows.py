"""`Ŵ[indices]`: rows of an embedding, out of the words that the product reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm import tirx

from ..base import Output, Step
from ..tir import Argument, Buffer, Expr, PrimFunc, index, load, only_if, prim_func, store
from .fragments import CHUNK, TILE
from .weights import Coded, Dense, Weights, place
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
    tile, position = held(row // TILE), held(row % TILE)
    chunk, within = held(column // CHUNK), held(column % CHUNK)
    lane = held(position % 8 * 4 + within // 16)
    small, half = held(within % 16 // 4), held(within % 2)
    # Both outputs of a lane in turn, for each of its pairs of inputs.
    pair = held(within % 4 // 2 * 2 + position // 8)
    if isinstance(weights, Dense):
        number = (small * WARP + lane) * 8 + pair * 2 + half
        if weights.activation.bytes == 4:
            number = ((small * 2 + pair // 2) * WARP + lane) * 4 + pair % 2 * 2 + half
        return load(source[0], 0, tile, chunk, number)
    assert isinstance(weights, Coded)
    return _decoded(weights, source, tile, position, chunk, lane, small, pair, half, column)


def _decoded(
    weights: Coded,
    source: Sequence[Buffer],
    tile: Expr,
    position: Expr,
    chunk: Expr,
    lane: Expr,
    small: Expr,
    pair: Expr,
    half: Expr,
    column: Expr,
) -> Expr:
    codes, scales, unit = source
    total = tirx.const(0.0, "float32")
    for plane in range(weights.planes):
        stored, low = index(0), 0
        for bits in weights.fields:
            # Words of higher bits come after those of lower ones, up to four of a lane together.
            word, shift = place(bits, small, pair)
            width = min(bits, 4)
            number = low * WARP + word // width * (width * WARP) + lane * width + word % width
            value = tirx.Cast("int64", load(codes, plane, 0, tile, chunk, number))
            field = tirx.bitwise_and(tirx.shift_right(value, shift + 16 * half), index(2**bits - 1))
            stored = stored + tirx.shift_left(field, index(low))
            low += bits
        scale = weights.scale(scales, plane, index(0), tile, position, column)
        total = total + tirx.Cast("float32", stored - weights.offset) * scale
    return total * load(unit, 0, tile, position)
