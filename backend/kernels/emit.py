"""From PrimFuncs over rows to Relax expressions of any rank, tiled for the target at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.target import Target
from tvm.target.codegen import target_has_features

from ...passes.errors import LoweringError
from .dots import Tiling
from .matmul import Matmul, matmul
from .rounding import round_activations, words_per_row
from .sources import Codes
from .tir import PrimFunc


def avx512(target: Target) -> Tiling | None:
    """32 registers of 16 floats."""
    if not target_has_features("avx512bw", target):
        return None
    return Tiling(rows=(8, 4, 1), add_pairs="llvm.x86.avx512.pmaddw.d.512", pair_lanes=16)


def avx2(target: Target) -> Tiling | None:
    """16 registers of 8 floats."""
    if not target_has_features("avx2", target):
        return None
    return Tiling(rows=(4, 1), add_pairs="llvm.x86.avx2.pmadd.wd", pair_lanes=8)


def any_cpu(target: Target) -> Tiling | None:
    """Plain vector code, which LLVM cuts to the registers that there are."""
    return Tiling()


RULES = (avx512, avx2, any_cpu)
"""Ordered: the first that answers decides."""


def tiling_for(target: Target | None) -> Tiling:
    """The tiling of the first rule that knows the target; without one, of any CPU.

    Raises:
        LoweringError: the target is not a CPU.
    """
    if target is None:
        return Tiling()
    if target.kind.name != "llvm":
        raise LoweringError(
            f"structured layers have no kernels for {target.kind.name} yet; choose target llvm"
        )
    return next(tiling for rule in RULES if (tiling := rule(target)) is not None)


class Flat:
    """`x: [..., features]` as `[rows, features]`, and the way back for what is computed from it."""

    def __init__(self, builder: relax.BlockBuilder, x: relax.Expr, *, keep: int = 1) -> None:
        """`keep` is the number of trailing dimensions that stay: 0 flattens indices."""
        self.builder = builder
        shape = list(x.ty.shape)
        self.leading = shape[: len(shape) - keep]
        self.rows = math.prod(self.leading[1:], start=self.leading[0]) if self.leading else 1
        flat = [self.rows, *shape[len(self.leading) :]]
        self.x = x if len(self.leading) == 1 else builder.emit(relax.op.reshape(x, flat))

    def restore(self, y: relax.Expr, features: int) -> relax.Expr:
        """`[rows, features]` with the leading dimensions of x."""
        if len(self.leading) == 1:
            return y
        return self.builder.emit(relax.op.reshape(y, [*self.leading, features]))

    def call(
        self,
        name: str,
        func: PrimFunc,
        arguments: Sequence[relax.Expr],
        *outputs: tuple[int, str],
    ) -> Any:
        """Calls `func` for outputs `[rows, width]` of the widths and dtypes given."""
        types = [relax.TensorType((self.rows, width), dtype) for width, dtype in outputs]
        function = self.builder.add_func(func, name)
        single = types[0] if len(types) == 1 else types
        return self.builder.emit(relax.call_tir(function, list(arguments), out_ty=single))

    def multiply(
        self, name: str, spec: Matmul, x: relax.Expr, weights: Sequence[relax.Expr]
    ) -> relax.Expr:
        """`[rows, batches · out_features]` from `x: [rows, batches · in_features]`."""
        inputs = [x]
        if isinstance(spec.source, Codes) and spec.rounded:
            inputs = list(self._rounded(spec, spec.source, x))
        func = matmul(spec, tiling_for(Target.current(allow_none=True)))
        width = spec.batches * spec.out_features
        return self.call(name, func, [*inputs, *weights], (width, "float32"))

    def _rounded(self, spec: Matmul, source: Codes, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
        group = source.group
        func = round_activations(spec.in_features, group)
        widths = (
            (words_per_row(spec.in_features, group), "int32"),
            (-(-spec.in_features // group), "float32"),
        )
        both = self.call("round_activations", func, [x], *widths)
        emit = self.builder.emit
        return emit(relax.TupleGetItem(both, 0)), emit(relax.TupleGetItem(both, 1))
