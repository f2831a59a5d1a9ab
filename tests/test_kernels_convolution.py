"""Convolutions over channels last, against PyTorch's in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from graphs import normal
from helpers import assert_close
from kernels import built
from numpy.typing import NDArray
from undense.backend.kernels.blocks import interleave
from undense.backend.kernels.convolution import Convolution, convolution_step
from undense.backend.kernels.depthwise import Depthwise, depthwise_step
from undense.backend.kernels.windows import Windows

WINDOWS = {
    "3x3": Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (9, 11)),
    "strided": Windows((3, 3), (2, 2), (1, 1), (0, 0), (1, 1), (10, 14)),
    "dilated, uneven": Windows((2, 3), (1, 2), (3, 2), (2, 0), (1, 3), (8, 13)),
    "wider than the image": Windows((5, 7), (1, 1), (1, 1), (2, 3), (2, 3), (3, 2)),
    "one axis": Windows((1, 3), (1, 1), (1, 1), (0, 1), (0, 1), (1, 37)),
    "strided entries": Windows((1, 1), (2, 2), (1, 1), (0, 0), (0, 0), (9, 9)),
}


SIZES = {case: tuple(length or 0 for length in found.image) for case, found in WINDOWS.items()}


def expected(
    windows: Windows, x: NDArray[Any], weight: NDArray[Any], groups: int
) -> NDArray[np.float64]:
    """Rows of `out` for each output; x channels last, weight `[out, in / groups, *window]`."""
    (top, left), (bottom, right) = windows.before, windows.after
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = torch.nn.functional.conv2d(
        torch.from_numpy(padded).permute(0, 3, 1, 2),
        torch.from_numpy(weight.astype(np.float64)),
        stride=windows.strides,
        dilation=windows.dilations,
        groups=groups,
    )
    return y.permute(0, 2, 3, 1).reshape(-1, len(weight)).numpy()


@pytest.mark.parametrize("known", [True, False], ids=["known size", "symbolic size"])
@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize("case", WINDOWS)
def test_each_channel_with_each(case: str, channels: int, known: bool) -> None:
    windows, outputs = WINDOWS[case], 40
    given = windows if known else replace(windows, image=(None, None))
    run = built(lambda: convolution_step(Convolution(given, channels, outputs)).function)
    weight = normal(outputs, channels, *windows.kernel)
    packed = interleave(np.moveaxis(weight, 1, -1).reshape(outputs, -1))
    for batch in (1, 3):
        x = normal(batch, *SIZES[case], channels)
        wanted = expected(windows, x, weight, groups=1)
        y = np.full(wanted.shape, np.nan, np.float32)
        run(x, packed, y)
        assert_close(y, wanted, reduction=windows.size * channels)


@pytest.mark.parametrize("known", [True, False], ids=["known size", "symbolic size"])
@pytest.mark.parametrize("channels", [16, 24, 160])
@pytest.mark.parametrize("case", WINDOWS)
def test_each_channel_by_itself(case: str, channels: int, known: bool) -> None:
    windows = WINDOWS[case]
    given = windows if known else replace(windows, image=(None, None))
    run = built(lambda: depthwise_step(Depthwise(given, channels)).function)
    weight = normal(channels, 1, *windows.kernel)
    packed = np.ascontiguousarray(weight.reshape(channels, -1).T)
    for batch in (1, 2):
        x = normal(batch, *SIZES[case], channels)
        wanted = expected(windows, x, weight, groups=channels)
        y = np.full(wanted.shape, np.nan, np.float32)
        run(x, packed, y)
        assert_close(y, wanted, reduction=windows.size)


def test_many_outputs_of_deep_windows() -> None:
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (16, 16))
    run = built(lambda: convolution_step(Convolution(windows, 272, 24)).function)
    x, weight = normal(2, 16, 16, 272), normal(24, 272, 3, 3)
    wanted = expected(windows, x, weight, groups=1)
    y = np.zeros(wanted.shape, np.float32)
    run(x, interleave(np.moveaxis(weight, 1, -1).reshape(24, -1)), y)
    assert_close(y, wanted, reduction=9 * 272)


def test_a_window_is_laid_out_once_however_many_outputs_there_are() -> None:
    windows = WINDOWS["3x3"]

    def shared(outputs: int) -> list[str]:
        text = convolution_step(Convolution(windows, 8, outputs)).function.script()
        return [line.split(" in ")[1] for line in text.splitlines() if "T.parallel(" in line]

    assert shared(320) == shared(16)
    assert len(shared(320)) == 1
