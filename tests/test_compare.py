"""Error metrics on cases whose value is known."""

from __future__ import annotations

import numpy as np
import pytest
from undense.passes.errors import InputError
from undense.runtime.compare import relative_error, worst_error

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [3.0, 0.0], 4 / 3),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [0.0, 0.0], 5.0),
        ([1, 2, 3, 4], [1, 2, 0, 4], 0.25),
        ([True, False], [True, True], 0.5),
        ([1.0, NAN], [1.0, 1.0], INF),
        ([1.0, 1.0], [1.0, NAN], INF),
        ([NAN], [NAN], INF),
        ([3.0, INF], [3.0, 4.0], INF),
        ([3.0, -INF], [4.0, -INF], 0.25),
        ([3.0, INF], [4.0, -INF], INF),
        ([3.0, -1e30], [4.0, -INF], INF),
        ([], [], 0.0),
        (2.0, 1.0, 1.0),
        ([[[1.0]]], [[[2.0]]], 0.5),
    ],
)
def test_relative_error(actual, expected, error):
    assert relative_error(actual, expected) == error


def test_it_is_taken_in_float64():
    large = np.full(4, 1e30, np.float32)
    assert relative_error(2 * large, large) == 1.0
    half = np.full(10_000, 200, np.float16)
    assert relative_error(half, half * np.float16(2)) == 0.5


def test_shapes_must_agree():
    with pytest.raises(InputError, match=r"shapes \(2,\) and \(1, 2\) cannot be compared"):
        relative_error([1.0, 2.0], [[1.0, 2.0]])


def test_worst_error():
    want = {"a": [2.0], "b": [4.0]}
    assert worst_error({"a": [3.0], "b": [5.0], "c": [0.0]}, want) == 0.5
    with pytest.raises(InputError, match="a, b: no such output"):
        worst_error({}, want)
