"""The rounding of activations is that of the reference, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from kernels import HOST
from numpy.typing import NDArray
from tvm.target import Target
from undense.backend.kernels.formats import quads_of
from undense.backend.kernels.rounding import round_activations, words_per_row
from undense.passes.structures import block_quantized


def rounded(x: NDArray[np.float32], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes `[rows, n]` and scales `[rows, groups]` from the kernel."""
    rows, length = x.shape
    function = round_activations(length, group).with_attr("global_symbol", "main")
    machine = Target(HOST)
    with machine:
        run = tvm.compile(function, target=machine)["main"]
    words = tvm.runtime.tensor(np.zeros((rows, words_per_row(length, group)), np.int32))
    scales = tvm.runtime.tensor(np.zeros((rows, -(-length // group)), np.float32))
    sums = tvm.runtime.tensor(np.zeros((rows, -(-length // group)), np.int32))
    run(tvm.runtime.tensor(x), words, scales, sums)
    octets = np.ascontiguousarray(words.numpy()).view(np.int8)
    stride = 4 * quads_of(group)
    parts = [
        octets[:, i * stride : i * stride + min(group, length - i * group)]
        for i in range(scales.shape[1])
    ]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part.astype(np.int64).sum(axis=1), sums.numpy()[:, i])
    codes = np.concatenate(parts, axis=1)
    assert np.abs(codes.astype(np.int16)).max(initial=0) <= 127
    return codes, scales.numpy()


@pytest.mark.parametrize("group", [16, 32, 128, 256])
@pytest.mark.parametrize("length", [1, 31, 64, 300, 576])
def test_codes_and_scales_are_those_of_the_reference(length: int, group: int) -> None:
    rng = np.random.default_rng(length)
    x = (rng.standard_normal((4, length)) * rng.uniform(1e-3, 1e3, (4, length))).astype(np.float32)
    x[1] = np.round(x[1])
    x[2, : length // 2] = 0
    codes, scales = rounded(x, group)
    values = codes * np.repeat(scales.astype(np.float64), group, axis=1)[:, :length]
    np.testing.assert_array_equal(values, block_quantized.round_activations(x, group))


def test_ties_go_to_even() -> None:
    x = np.zeros((1, 16), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    codes, scales = rounded(x, 16)
    np.testing.assert_array_equal(codes[0, :6], [127, 0, 2, 2, 0, -2])
    np.testing.assert_array_equal(scales, [[1]])


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1e-38, 3e38])
def test_the_ends_of_the_float_range(value: float) -> None:
    x = np.full((1, 20), value, np.float32)
    x[0, ::2] *= -1
    codes, scales = rounded(x, 16)
    values = codes * np.repeat(scales.astype(np.float64), 16, axis=1)[:, :20]
    np.testing.assert_array_equal(values, block_quantized.round_activations(x, 16))
