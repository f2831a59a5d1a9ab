"""The products of the CUDA kernels: every storage, type, group and number of rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from cuda_helpers import ORDERS
from cuda_kernels import DTYPES, Weight, array, coded, dense, random_codes, rounding
from undense.backend.kernels.cuda.products import tilings
from undense.backend.kernels.cuda.weights import BITS

pytestmark = pytest.mark.usefixtures("cuda_device")

ROWS = (0, 1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 129)
"""None, one, the edges of every tiling, and a last block that is not whole."""

DENSE_SHAPES = [(1, 1), (7, 37), (33, 7), (48, 64), (72, 100), (100, 576), (33, 1100)]
"""Odd, aligned, and so deep that a block's warps all have several chunks under way."""

CODED_SHAPES = [(7, 37), (33, 7), (1, 64), (100, 100), (72, 580), (48, 576), (33, 2100)]
GROUPS = tuple(range(16, 257, 16))
FEW_GROUPS = (48, 80, 240)
SCALED = [(dtype, bits) for bits in BITS for dtype in DTYPES]


def check_rows(
    weight: Weight, rows: Sequence[int] = ROWS, orders: Sequence[str] = ("forward",)
) -> None:
    run = weight.compiled()
    for count, order in itertools.product(rows, orders):
        x = array(weight.product.activation.dtype, count, weight.product.inputs, seed=count)
        weight.check(x, run(x, order))


def test_the_rows_reach_every_tiling() -> None:
    for weight in (dense("float16", 7, 7), dense("float32", 7, 7), coded("float16", 4, 7, 7)):
        limits = [most for most, _ in tilings(weight.product)]
        for low, high in zip([0, *limits], limits, strict=False):
            assert any(low < rows and (high is None or rows <= high) for rows in ROWS)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param(dtype, shape, marks=[] if (i + j) % 3 == 0 else pytest.mark.slow)
        for i, dtype in enumerate(DTYPES)
        for j, shape in enumerate(DENSE_SHAPES)
    ],
)
def test_dense(dtype: str, shape: tuple[int, int]) -> None:
    check_rows(dense(dtype, *shape), ROWS if min(shape) > 7 else (0, 1, 9, 17, 65))


@pytest.mark.parametrize("number", range(len(SCALED)), ids=lambda i: "-".join(map(str, SCALED[i])))
def test_codes_of_every_width_in_every_type(number: int) -> None:
    dtype, bits = SCALED[number]
    shape = CODED_SHAPES[number % len(CODED_SHAPES)]
    group, planes = (16, 32, 64, 128, 256)[number % 5], 1 + number // 2 % 3
    weight = coded(dtype, bits, *shape, group=group, planes=planes)
    check_rows(weight, ROWS if number % 4 == 0 else (1, 9, 33, 65))


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=[] if g in FEW_GROUPS else pytest.mark.slow) for g in GROUPS]
)
def test_groups_that_begin_anywhere_in_a_chunk(group: int) -> None:
    dtype, planes = DTYPES[group // 16 % 3], 1 + group // 16 % 2
    weight = coded(dtype, 4, 40, 580, group=group, planes=planes)
    check_rows(weight, (1, 9, 33, 70))


@pytest.mark.parametrize(
    "weight",
    [dense("float16", 72, 580), dense("float32", 72, 580), coded("bfloat16", 3, 72, 580, group=32)],
    ids=["dense-f16", "dense-f32", "codes"],
)
def test_threads_may_run_in_any_order(weight: Weight) -> None:
    check_rows(weight, (1, 9, 33, 129), ORDERS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_sums_do_not_depend_on_how_large_values_are(dtype: str) -> None:
    largest = {"float16": 60.0}.get(dtype, 1e15)
    check_rows(dense(dtype, 33, 100, scale=largest), (3, 40))
    check_rows(dense(dtype, 33, 100, scale=1 / largest), (3, 40))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_of_zero_give_zero(dtype: str) -> None:
    weight = coded(dtype, 8, 33, 100, scales=np.zeros((1, 33, 2)))
    run = weight.compiled()
    for rows in (1, 40):
        np.testing.assert_array_equal(run(array(dtype, rows, 100)), np.zeros((rows, 33), dtype))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scales_far_from_one(dtype: str, size: float) -> None:
    codes = np.where(random_codes(8, 1, 33, 100) < 0, -128, 127).astype(np.int8)
    check_rows(coded(dtype, 8, 33, 100, codes=codes, scales=np.full((1, 33, 2), size)), (3, 40))


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-3, 30.0])
def test_scales_beyond_float16_are_its_numbers_by_their_unit(size: float) -> None:
    codes = np.where(random_codes(8, 1, 33, 100) < 0, -128, 127).astype(np.int8)
    weight = coded("float16", 8, 33, 100, codes=codes, scales=np.full((1, 33, 2), size))
    check_rows(weight, (3, 40))


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_each_output_keeps_its_digits_beside_larger_ones(dtype: str, group: int) -> None:
    outputs, inputs, planes = 33, 100, 2
    sizes = 2.0 ** np.linspace(-13, 7, outputs)
    spread = np.random.default_rng(4).uniform(0.5, 1, (planes, outputs, -(-inputs // group)))
    weight = coded(
        dtype, 4, outputs, inputs, group=group, planes=planes, scales=spread * sizes[:, None]
    )
    run = weight.compiled()
    for rows in (3, 40, 70):
        x = array(dtype, rows, inputs)
        wide = x.astype(np.float64)
        lost = np.linalg.norm(run(x) - wide @ weight.exact.T, axis=0)
        size = np.sqrt((wide**2 @ weight.exact.T**2).sum(0))
        assert (lost / size).max() < 3 * rounding(dtype)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    "weight", [dense("float16", 33, 64, scale=1e3), coded("float16", 8, 33, 64)]
)
def test_results_beyond_float16_are_infinite(weight: Weight, rows: int) -> None:
    x = array("float16", rows, 64, scale=1e4)
    y = weight.compiled()(x)
    wanted = x.astype(np.float64) @ weight.exact.T
    clear = np.abs(wanted) > 70000
    assert clear.any()
    np.testing.assert_array_equal(y[clear], np.sign(wanted[clear]) * np.inf)
    finite = np.abs(wanted) < 60000
    assert np.isfinite(y[finite]).all()


def test_float32_is_not_rounded_to_tf32() -> None:
    weight = dense("float32", 33, 64)
    run = weight.compiled()
    for rows in (1, 40):
        x = array("float32", rows, 64)
        wanted = x.astype(np.float64) @ weight.exact.T
        error = np.linalg.norm(run(x) - wanted) / np.linalg.norm(wanted)
        assert error < 8 * rounding("float32")
