"""exp, erf and tanh in vectors: within two units in the last place, and right at the ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from kernels import HOST
from numpy.typing import NDArray
from tvm import te
from tvm.s_tir import Schedule
from tvm.target import Target
from undense.backend.kernels import mathematics

Floats = NDArray[np.float32]


def evaluated(function: Callable[[Any], Any], x: Floats) -> Floats:
    """The function of each entry, 16 at a time."""
    source = te.placeholder((len(x),), name="x")
    result = te.compute((len(x),), lambda i: function(source[i]))
    schedule = Schedule(tvm.IRModule({"main": te.create_prim_func([source, result])}))
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    (loop,) = schedule.get_loops(block)
    schedule.vectorize(schedule.split(loop, [None, 16])[1])
    with Target(HOST) as machine:
        run = tvm.compile(schedule.mod, target=machine)["main"]
    output = tvm.runtime.tensor(np.zeros_like(x))
    run(tvm.runtime.tensor(x), output)
    found: Floats = output.numpy()
    return found


@pytest.mark.parametrize(
    ("name", "reference", "low", "high"),
    [("exp", math.exp, -104, 88.7), ("erf", math.erf, -5, 5), ("tanh", math.tanh, -10, 10)],
)
def test_results_are_within_three_units_in_the_last_place(
    name: str, reference: Callable[[float], float], low: float, high: float
) -> None:
    x = np.linspace(low, high, 1 << 16, dtype=np.float32)
    x[:16] *= np.float32(1e-4)
    wanted = np.array([reference(float(value)) for value in x])
    error = np.abs(evaluated(getattr(mathematics, name), x) - wanted)
    units = error / np.spacing(np.abs(wanted).astype(np.float32))
    assert units.max() < 3


def test_the_ends_of_the_range() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38] * 2, np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(evaluated(mathematics.exp, x), np.exp(x))
    limits = np.array([np.nan, 1, -1, 0, 0, 0, 1, -1] * 2, np.float32)
    for function in (mathematics.erf, mathematics.tanh):
        np.testing.assert_allclose(evaluated(function, x), limits, atol=1e-44)
