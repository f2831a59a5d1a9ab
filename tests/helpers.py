"""Shared by the tests: closeness with a bound that follows from dtype and reduction length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


def assert_close(
    actual: ArrayLike, expected: ArrayLike, *, reduction: int, dtype: DTypeLike = np.float32
) -> None:
    """`|a − e| ≤ 8·reduction·eps·max|e|` for each entry, and equal shapes.

    Args:
        actual: what was computed in `dtype`.
        expected: the same in a wider or equal dtype.
        reduction: the longest sum behind one entry.
        dtype: the narrowest floating dtype that `actual` went through.
    """
    got, want = np.asarray(actual), np.asarray(expected)
    assert got.shape == want.shape, f"shape {got.shape} is not {want.shape}"
    if want.size == 0:
        return
    assert np.isfinite(got).all(), "an entry is not finite"
    bound = 8 * reduction * np.finfo(dtype).eps * np.abs(want).max()
    worst = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    assert worst <= bound, f"differs by {worst:.3g}, more than {bound:.3g}"
