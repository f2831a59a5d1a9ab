"""`y = x Qᵀ + (x down) up`: the kernel of the codes adds what the one of low rank has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from ...passes.structures.base import Factors, Structure
from ...passes.structures.residual import Residual, split
from .base import Kernel, Packed, Shapes, Step
from .finish import Finish, one_after_the_other
from .mathematics import dtype_of
from .tir import Argument, Buffer, Expr, PrimFunc, load

_ADDED = "residual"


class ResidualKernel(Kernel[Residual]):
    """Stores what the kernels of both parts do, whose names differ."""

    def __init__(self, kernels: Mapping[str, Kernel[Any]]) -> None:
        self.kernels = kernels

    def pack(self, structure: Residual, factors: Factors) -> Packed:
        """The tensors of the codes, then those of low rank."""
        codes, thin = split(factors)
        return {
            **self._of(structure.codes).pack(structure.codes, codes),
            **self._of(structure.low_rank).pack(structure.low_rank, thin),
        }

    def steps(
        self, structure: Residual, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """Those of low rank, then those of the codes, of which the last one adds the two.

        Of halves it is the smaller product that is rounded before they are added.
        """
        features = (out_features, in_features)
        codes, thin = structure.codes, structure.low_rank
        *before, last = self._of(thin).steps(thin, *features, stored)
        *prepared, product = self._of(codes).steps(codes, *features, stored)
        return [*before, last.renamed({"y": _ADDED}), *prepared, _adding(product)]

    def _of(self, part: Structure) -> Kernel[Any]:
        return self.kernels[part.kind]


def _adding(step: Step) -> Step:
    """The step that adds the residual to its output; it can still be finished."""
    (y,), make = step.outputs, step.finish
    assert make is not None, "kernels of codes take a finish"
    add = _add(y.width, y.dtype)

    def finished(finish: Finish) -> PrimFunc:
        return make(one_after_the_other(add, finish))

    return replace(
        step,
        name=f"{step.name}_{_ADDED}",
        function=make(add),
        inputs=(*step.inputs, _ADDED),
        finish=finished,
    )


@cache
def _add(width: int, dtype: str) -> Finish:
    """`sum + residual[row, column]`, in float32 and rounded once."""

    def arguments(rows: Expr) -> Sequence[Argument]:
        return [Argument(_ADDED, (rows, width), dtype)]

    def apply(buffers: Sequence[Buffer], value: Expr, row: Expr, column: Expr) -> Expr:
        (residual,) = buffers
        added = load(residual, row, column)
        if dtype_of(value) == dtype_of(added) == "float32":
            return value + added
        return (value.astype("float32") + added.astype("float32")).astype(dtype)

    return Finish(arguments, apply, dtype)
