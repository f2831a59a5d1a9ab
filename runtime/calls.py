"""`Call`: one function that an engine ran, as its instruments saw it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """A call within one run.

    Attributes:
        name: of the function or operator.
        workload: shapes of what it took and gave; empty where it handles no tensors.
        seconds: it took, without the calls inside it.
        builtin: whether it is the engine's own bookkeeping and no part of the model.
    """

    name: str
    workload: str
    seconds: float
    builtin: bool = False


def shapes(inputs: Iterable[Sequence[int]], output: Sequence[int]) -> str:
    """`3x96, 8x96x16 -> 3x128`."""
    return f"{', '.join(map(_shape, inputs))} -> {_shape(output)}"


def _shape(lengths: Sequence[int]) -> str:
    return "x".join(map(str, lengths)) or "scalar"
