"""Products with dense weights: of few rows by a kernel of ours, of many by cuBLAS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm import tirx
from tvm.tirx.script import builder as T

from ..base import Output, Step
from ..tir import Argument, Buffer, Expr, PrimFunc, by_rows, prim_func
from .dtypes import Activation
from .few_rows import FewRowsTiling, emit_few_rows
from .product import Product
from .products import tilings
from .weights import Dense

LINEAR = "undense_cublas_linear"
"""The function of `cublas.so`: `(x, weight, y)`."""


def cublas_step(out_features: int, in_features: int, activation: Activation) -> Step:
    """`(x, weight, plain) -> y` with the weight in order of fragments, and by rows `[out, in]`.

    The kernel takes no finish: cuBLAS could not do the same.
    """
    function = cublas_function(out_features, in_features, activation)
    y = Output("y", out_features, activation.dtype)
    return Step("dense_cublas", function, ("x", "weight", "plain"), (y,))


@cache
def cublas_function(out_features: int, in_features: int, activation: Activation) -> PrimFunc:
    """The PrimFunc `(x, weight, plain, y)` over a symbolic number of rows.

    Few rows take as long as reading the weight, which our order of it is for; many take as long as
    computing, which cuBLAS is made for.
    """
    product = Product.plain(activation, Dense(activation), out_features, in_features)
    few = [(most, tiling) for most, tiling in tilings(product) if isinstance(tiling, FewRowsTiling)]

    def arguments(rows: Expr) -> Sequence[Argument]:
        *inputs, y = product.arguments(rows, None)
        return [*inputs, Argument("plain", (out_features, in_features), activation.dtype), y]

    def body(rows: Expr, x: Buffer, weight: Buffer, plain: Buffer, y: Buffer) -> None:
        def emit(tiling: FewRowsTiling | None, least: int, most: int | None) -> None:
            if tiling is None:
                T.evaluate(tirx.call_packed(LINEAR, x, plain, y))
            else:
                emit_few_rows(product, tiling, None, rows, (x, weight, y))

        by_rows(rows, [*few, (None, None)], emit)

    return prim_func(arguments, body)
