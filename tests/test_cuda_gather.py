"""Rows of an embedding on CUDA, from the words that the product reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_helpers import ORDERS
from cuda_kernels import (
    DTYPES,
    FLOAT32,
    Array,
    Weight,
    check_rounded,
    coded,
    dense,
    on_device,
)
from undense.backend.kernels.cuda.rows import gather_step
from undense.backend.kernels.cuda.weights import BITS

pytestmark = pytest.mark.usefixtures("cuda_device")

OUTPUTS = 37
EVERY = np.concatenate([np.arange(OUTPUTS), [36, 0, 36]])
CODED = [(dtype, bits) for bits in BITS for dtype in DTYPES]


def gathered(weight: Weight, indices: Array, order: str = "forward") -> Array:
    product = weight.product
    step = gather_step(product.weights, product.width, product.depth, indices.dtype.name, ("x",))
    y: Array = np.full((len(indices), product.depth), np.nan).astype(product.activation.dtype)
    on_device(step.function)(indices, *weight.stored, y, order=order)
    return y


@pytest.mark.parametrize("index", ["int64", "int32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_dense_table_are_themselves(dtype: str, index: str) -> None:
    weight = dense(dtype, OUTPUTS, 150)
    rows = gathered(weight, EVERY.astype(index))
    np.testing.assert_array_equal(rows.astype(np.float64), weight.exact[EVERY])


@pytest.mark.parametrize("number", range(len(CODED)), ids=lambda i: "-".join(map(str, CODED[i])))
def test_rows_of_codes_are_rounded_once(number: int) -> None:
    dtype, bits = CODED[number]
    group, planes = (16, 48, 64, 128)[number % 4], 1 + number // 2 % 3
    weight = coded(dtype, bits, OUTPUTS, 150, group=group, planes=planes)
    rows = gathered(weight, EVERY)
    lost = 2 * planes * FLOAT32 * weight.magnitude[EVERY]
    check_rounded(rows, weight.exact[EVERY], lost)


@pytest.mark.parametrize("order", ORDERS)
def test_threads_may_run_in_any_order(order: str) -> None:
    weight = coded("float32", 3, OUTPUTS, 150)
    rows = gathered(weight, EVERY, order)
    check_rounded(rows, weight.exact[EVERY], 2 * FLOAT32 * weight.magnitude[EVERY])


@pytest.mark.parametrize(
    "weight", [dense("float16", OUTPUTS, 70), coded("float16", 8, OUTPUTS, 70)]
)
def test_negative_indices_count_from_the_end_and_others_are_clamped(weight: Weight) -> None:
    asked = np.array([-1, -37, -38, 37, 2**62, -(2**62), -(2**63), 2**63 - 1])
    given = np.array([36, 0, 0, 36, 36, 0, 0, 36])
    np.testing.assert_array_equal(gathered(weight, asked), gathered(weight, given))


def test_int32_indices_at_the_ends_of_their_range() -> None:
    weight = dense("float32", OUTPUTS, 70)
    ends = np.array([-(2**31), 2**31 - 1], np.int32)
    np.testing.assert_array_equal(gathered(weight, ends), weight.exact[[0, 36]].astype(np.float32))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_indices(count: int) -> None:
    weight = dense("float16", OUTPUTS, 300)
    indices = np.random.default_rng(count).integers(0, OUTPUTS, count)
    rows: Any = gathered(weight, indices)
    np.testing.assert_array_equal(rows.astype(np.float64), weight.exact[indices])
