"""`softmax(scale · Q Kᵀ + mask) V` a tile of keys at a time, no score of which leaves a register.

Ordered rules choose by the number of rows, the queries of all heads that share one of the keys: few
rows have their keys split over blocks, many have blocks enough.
"""

from __future__ import annotations

from functools import cache

from ..attention import Attention
from ..tir import Buffer, PrimFunc, only_if, prim_func_of
from .attention_arguments import Given, Lengths, arguments
from .attention_few import emit_few_rows
from .attention_many import emit_many_rows
from .attention_splits import Splits, emit_sum_of_splits
from .attention_tiling import FEW, GREATEST, few_rows, many_rows
from .dtypes import activation
from .fragments import TILE


def fits(spec: Attention, dtype: str) -> bool:
    """Whether there is a kernel for it."""
    sizes = (spec.size, spec.value_size)
    known = activation(dtype) is not None
    return known and all(size % TILE == 0 and size <= GREATEST for size in sizes)


@cache
def attention(spec: Attention, dtype: str) -> PrimFunc:
    """The PrimFunc `(query, key, value, mask if there is one, y, workspace)`.

    All but the mask and the workspace, see `workspace`, are of one type.
    """
    known = activation(dtype)
    assert known is not None
    lengths = Lengths()

    def body(*buffers: Buffer) -> None:
        given = Given(spec, known, lengths, buffers)
        with only_if(given.rows <= FEW):
            splits = Splits(given)
            emit_few_rows(given, few_rows(spec, known), splits)
            emit_sum_of_splits(given, splits)
        with only_if(given.rows > FEW):
            emit_many_rows(given, many_rows(spec, known))

    return prim_func_of(arguments(spec, known, lengths), body)
