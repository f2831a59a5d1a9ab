"""Error metrics: how far one output is from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..passes.errors import InputError


def relative_error(actual: ArrayLike, expected: ArrayLike) -> float:
    """`‖a − e‖ / ‖e‖` in float64; `‖a − e‖` for a zero reference.

    Integers and truth values have no distance: there it is the share of entries that differ.
    Where the reference is infinite the other must be infinite alike; those entries, such as the
    masked ones of logits, have no part in the norms.

    Returns:
        The error, `inf` if an entry of either is not a number.

    Raises:
        InputError: the shapes differ.
    """
    got, want = np.asarray(actual), np.asarray(expected)
    if got.shape != want.shape:
        raise InputError(f"outputs of shapes {got.shape} and {want.shape} cannot be compared")
    if want.size == 0:
        return 0.0
    if got.dtype.kind in "biu" and want.dtype.kind in "biu":
        return float(np.mean(got != want))
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite]) or not np.isfinite(got[finite]).all():
        return float("inf")
    scale = _norm(want[finite])
    distance = _norm(got[finite] - want[finite])
    return distance / scale if scale else distance


def worst_error(actual: Mapping[str, ArrayLike], expected: Mapping[str, ArrayLike]) -> float:
    """The largest `relative_error` over the outputs of `expected`.

    Raises:
        InputError: an output is missing, or its shape differs.
    """
    missing = sorted(set(expected) - set(actual))
    if missing:
        raise InputError(f"{', '.join(missing)}: no such output to compare")
    return max((relative_error(actual[name], value) for name, value in expected.items()), default=0)


def _norm(values: NDArray[Any]) -> float:
    return float(np.linalg.norm(values.reshape(-1)))
