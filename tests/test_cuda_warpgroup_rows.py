"""Products by instructions of a warpgroup: every storage and type, at sizes that are not whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cuda_emulation
import numpy as np
import pytest
from cuda_helpers import ORDERS
from cuda_kernels import Weight, array, check_rounded, coded, dense, known, on_device, sum_error
from kernels import random_factors
from test_cuda_structures import check, on_cuda, resolved
from tvm import tirx
from undense.backend.kernels.cuda.few_rows import FewRowsTiling
from undense.backend.kernels.cuda.product import Product
from undense.backend.kernels.cuda.products import chosen, product_function, tilings
from undense.backend.kernels.cuda.warpgroup_rows import WarpgroupRowsTiling
from undense.backend.kernels.cuda.weights import BITS, Dense
from undense.backend.kernels.finish import Finish
from undense.backend.kernels.tir import Argument, load
from undense.backend.target import Target

pytestmark = pytest.mark.usefixtures("cuda_device")

HALVES = ("float16", "bfloat16")
SMALL = WarpgroupRowsTiling(warpgroups=1, height=128, tiles=1, stages=3)
TILINGS = (
    SMALL,
    WarpgroupRowsTiling(warpgroups=2, height=256, tiles=1, stages=4),
    WarpgroupRowsTiling(warpgroups=3, height=128, tiles=1, stages=5),
    WarpgroupRowsTiling(warpgroups=1, height=128, tiles=2, stages=6),
)
DENSE_SHAPES = ((1, 1), (7, 37), (33, 6), (100, 130), (72, 1100))
"""Odd depths, even ones, and more chunks than stages."""

CODED_SHAPES = ((7, 37), (33, 6), (72, 580), (100, 200), (1, 64))


def check_rows(
    weight: Weight,
    tiling: WarpgroupRowsTiling = SMALL,
    rows: Sequence[int] = (1, 130),
    orders: Sequence[str] = ("forward",),
) -> None:
    run = on_device(product_function(weight.product, ((None, tiling),)))
    for count, order in itertools.product(rows, orders):
        x = array(weight.product.activation.dtype, count, weight.product.inputs, seed=count)
        y = np.full((count, weight.product.columns), np.nan).astype(x.dtype)
        run(x, *weight.stored, y, order=order)
        weight.check(x, y)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param(dtype, shape, marks=[] if (i + j) % 3 == 0 else pytest.mark.slow)
        for i, dtype in enumerate(HALVES)
        for j, shape in enumerate(DENSE_SHAPES)
    ],
)
def test_dense(dtype: str, shape: tuple[int, int]) -> None:
    check_rows(dense(dtype, *shape), rows=(0, 1, 127, 128, 257))


@pytest.mark.parametrize(
    "tiling", [TILINGS[0], *(pytest.param(t, marks=pytest.mark.slow) for t in TILINGS[1:])], ids=str
)
def test_every_tiling_in_any_order_of_threads(tiling: WarpgroupRowsTiling) -> None:
    check_rows(dense("float16", 150, 388), tiling, (130,), ORDERS[:3])
    check_rows(coded("bfloat16", 3, 150, 388, group=32), tiling, (130,), ORDERS[1:3])


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [
        pytest.param(bits, dtype, marks=[] if (i + j) % 2 == 0 else pytest.mark.slow)
        for i, bits in enumerate(BITS)
        for j, dtype in enumerate(HALVES)
    ],
)
def test_codes_of_every_width(bits: int, dtype: str) -> None:
    number = BITS.index(bits)
    shape, group = CODED_SHAPES[number], (16, 32, 48, 80, 128)[number]
    check_rows(coded(dtype, bits, *shape, group=group, planes=1 + number % 3))


def test_blocks_read_their_part_of_x() -> None:
    activation = known("float16")
    product = Product(activation, Dense(activation), 3, width=20, depth=36, stride=38, columns=60)
    weight = array("float16", 3, 20, 36, seed=1)
    run = on_device(product_function(product, ((None, SMALL),)))
    x = array("float16", 130, product.inputs)
    y = np.full((130, 60), np.nan, np.float16)
    run(x, product.weights.pack(weight), y)
    parts = x.astype(np.float64).reshape(130, 3, 38)[..., :36]
    wanted = np.einsum("rbk,bjk->rbj", parts, weight.astype(np.float64)).reshape(130, 60)
    lost = np.einsum("rbk,bjk->rbj", abs(parts), abs(weight.astype(np.float64))).reshape(130, 60)
    check_rounded(y, wanted, sum_error("float16", 36) * lost)


def test_outputs_are_finished_before_they_are_stored() -> None:
    weight = dense("float16", 40, 100)

    def arguments(rows: tirx.Expr) -> tuple[Argument, ...]:
        return (Argument("bias", (40,), "float16"), Argument("residual", (rows, 40), "float16"))

    def apply(buffers, value, row, column):  # type: ignore[no-untyped-def]
        bias, residual = buffers
        biased = value + load(bias, column)
        return tirx.max(biased, tirx.const(0, "float16")) + load(residual, row, column)

    finish = Finish(arguments, apply, "float16")
    run = on_device(product_function(weight.product, ((None, SMALL),), finish))
    x, bias = array("float16", 131, 100), array("float16", 40, seed=5)
    residual = array("float16", 131, 40, seed=6)
    y = np.full((131, 40), np.nan, np.float16)
    run(x, *weight.stored, bias, residual, y)
    exact = np.maximum(x.astype(np.float64) @ weight.exact.T + bias, 0) + residual
    np.testing.assert_allclose(y, exact, rtol=4e-3, atol=4e-2)


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("monarch{in_blocks=4,out_blocks=5,rank=3}", "float16"),
        pytest.param("low_rank{rank=7}", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_structures_of_a_model_for_hopper(scheme: str, dtype: str) -> None:
    structure = resolved(scheme)
    factors = random_factors(structure, (40, 300))
    machine = {**cuda_emulation.TARGET, "arch": "sm_90a"}
    run = on_cuda(structure, factors, dtype, target=machine)
    for rows in (3, 65, 200):
        x = array(dtype, rows, 300)
        check(structure, factors, x, run(x))


@pytest.mark.parametrize("outputs", [64, 4096])
@pytest.mark.parametrize(
    ("architectures", "dtype", "taken"),
    [
        *(("sm_90a", dtype, True) for dtype in HALVES),
        ("sm_90a", "float32", False),
        *((several, "float16", False) for several in ("sm_90", "sm_80,sm_90a", "sm_90a,sm_100")),
    ],
)
def test_only_kernels_for_hopper_alone_take_its_instructions(
    architectures: str, dtype: str, taken: bool, outputs: int
) -> None:
    product = dense(dtype, outputs, 64).product
    with Target.parse(f"cuda -arch={architectures}").tvm():
        rules = chosen(product)
    assert all(isinstance(tiling, WarpgroupRowsTiling) == taken for _, tiling in rules[3:])
    tall = [512] if taken and outputs == 4096 else []
    assert [most for most, _ in rules] == [8, 16, 64, *tall, None]
    assert isinstance(rules[0][1], FewRowsTiling)
    assert rules == tilings(product, taken)
