"""`Ŵ[indices]`: rows of an embedding, decoded from the tensors that the product reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm import tirx

from .blocks import LANES, block_count
from .sources import Codes
from .tir import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    convert,
    index,
    load,
    parallel,
    prim_func,
    serial,
    store,
)


@cache
def gather_rows(source: Codes, out_features: int, in_features: int, index_dtype: str) -> PrimFunc:
    """The PrimFunc `(indices, codes, scales, y)`: `[count]` to float32 `[count, in_features]`.

    Negative indices count from the end; what is out of bounds is clamped.
    """
    full, rest = divmod(in_features, source.group)

    def arguments(count: Expr) -> Sequence[Argument]:
        return [
            Argument("indices", (count,), index_dtype),
            *source.arguments(block_count(out_features), in_features),
            Argument("y", (count, in_features), "float32"),
        ]

    def body(count: Expr, indices: Buffer, codes: Buffer, scales: Buffer, y: Buffer) -> None:
        with parallel(count) as i:
            wanted = convert(load(indices, i), "int64", 1)
            positive = tirx.Select(wanted < 0, wanted + out_features, wanted)
            row = bind(tirx.max(tirx.min(positive, index(out_features - 1)), index(0)))
            if full:
                with serial(full) as group:
                    _group(source, codes, scales, y, i, row, group, source.group)
            if rest:
                _group(source, codes, scales, y, i, row, index(full), rest)

    return prim_func(arguments, body)


def _group(
    source: Codes,
    codes: Buffer,
    scales: Buffer,
    y: Buffer,
    target: Expr,
    row: Expr,
    group: Expr,
    length: int,
) -> None:
    layout = source.format
    block, lane = row // LANES, row % LANES
    scale = load(scales, 0, block, group, lane)
    first_unit, _ = source.first_quad(group)

    def unit(number: Expr, count: int) -> None:
        quads = source.quads(codes, 0, block, first_unit + number, lane, 1)
        for j in range(count):
            code = ((quads[j // 4] >> (8 * (j % 4))) & 255) - layout.offset
            column = group * source.group + number * layout.codes + j
            store(y, convert(code, "float32", 1) * scale, target, column)

    whole, rest = divmod(length, layout.codes)
    with serial(whole) as number:
        unit(number, layout.codes)
    if rest:
        unit(index(whole), rest)
