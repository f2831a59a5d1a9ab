"""LayerNorm and RMSNorm on CUDA: rows of every length, in every type, and what finishes them."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_helpers import ORDERS
from cuda_kernels import DTYPES, FLOAT32, Array, array, check_rounded, on_device
from tvm import tirx
from undense.backend.kernels.cuda.norm import norm_step
from undense.backend.kernels.finish import Finish
from undense.backend.kernels.tir import Argument, load

pytestmark = pytest.mark.usefixtures("cuda_device")

FEATURES = (1, 2, 7, 36, 64, 100, 576, 1000, 4096, 9001)
"""Shorter than a warp, of one warp, of several, and longer than a block's threads take at once."""

EPSILON = 1e-5


def normalised(x: Array, *, centered: bool) -> tuple[Array, Array]:
    """The rows in float64, and what float32 may lose of each value."""
    wide = x.astype(np.float64)
    center = wide.mean(-1, keepdims=True) if centered else np.zeros((len(x), 1))
    root = np.sqrt(((wide - center) ** 2).mean(-1, keepdims=True) + EPSILON)
    largest = np.abs(wide).max(-1, keepdims=True, initial=0.0)
    # The mean lacks a few roundings of the values, all of a row's at once.
    lost = 8 * FLOAT32 * (largest if centered else 0) / root
    standard = (wide - center) / root
    return standard, lost + 16 * FLOAT32 * (np.abs(standard) + np.abs(standard) * lost)


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("number", range(len(FEATURES)), ids=lambda i: str(FEATURES[i]))
def test_rows_of_every_length(number: int, centered: bool) -> None:
    features, dtype = FEATURES[number], DTYPES[(number + centered) % 3]
    run = on_device(norm_step(features, EPSILON, dtype, centered=centered).function)
    for rows in (0, 1, 3, 70):
        x = array(dtype, rows, features, seed=rows, scale=3) + np.array(1, dtype)
        y = np.full((rows, features), np.nan, np.float32)
        run(x, y)
        check_rounded(y, *normalised(x, centered=centered))


@pytest.mark.parametrize("order", ORDERS)
def test_threads_may_run_in_any_order(order: str) -> None:
    run = on_device(norm_step(1000, EPSILON, "float32", centered=True).function)
    x, y = array("float32", 5, 1000), np.full((5, 1000), np.nan, np.float32)
    run(x, y, order=order)
    check_rounded(y, *normalised(x, centered=True))


def test_equal_values_have_no_variance() -> None:
    run = on_device(norm_step(100, EPSILON, "float16", centered=True).function)
    x, y = np.full((2, 100), 3, np.float16), np.full((2, 100), np.nan, np.float32)
    run(x, y)
    np.testing.assert_array_equal(y, 0)


def test_a_mean_far_from_zero_costs_no_variance() -> None:
    # E[x²] − E[x]² would be all rounding.
    run = on_device(norm_step(512, EPSILON, "float32", centered=True).function)
    x = array("float32", 3, 512) + np.float32(1000)
    y = np.full((3, 512), np.nan, np.float32)
    run(x, y)
    check_rounded(y, *normalised(x, centered=True))


def test_squares_of_float16_do_not_overflow() -> None:
    run = on_device(norm_step(64, EPSILON, "float16", centered=False).function)
    x, y = array("float16", 2, 64, scale=1e4), np.full((2, 64), np.nan, np.float32)
    run(x, y)
    check_rounded(y, *normalised(x, centered=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_bias_come_before_the_result_is_rounded(dtype: str) -> None:
    features = 100
    vectors = [Argument(name, (features,), dtype) for name in ("scale", "bias")]

    def apply(buffers, value, row, column):
        scale, bias = (tirx.Cast("float32", load(buffer, column)) for buffer in buffers)
        return tirx.Cast(dtype, value * scale + bias)

    finish = Finish(lambda rows: vectors, apply, dtype)
    step = norm_step(features, EPSILON, dtype, centered=True)
    assert step.finish is not None
    run = on_device(step.finish(finish))
    x, scale, bias = (
        array(dtype, *shape, seed=i) for i, shape in enumerate([(9, 100), *[(100,)] * 2])
    )
    y = np.full((9, features), np.nan).astype(dtype)
    run(x, scale, bias, y)
    standard, lost = normalised(x, centered=True)
    wide, shift = scale.astype(np.float64), bias.astype(np.float64)
    wanted = standard * wide + shift
    check_rounded(y, wanted, lost * np.abs(wide) + 2 * FLOAT32 * (np.abs(wanted) + np.abs(shift)))
