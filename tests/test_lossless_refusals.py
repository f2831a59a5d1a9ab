"""What the exact rewrites leave: constants that are none, and scalars in a residual stream."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from lossless import assert_exact, assert_refused, doubles

NORM = """g (double[b,8] x) => (double[b,6] y) {
    n = LayerNormalization(x, s, t)  h = MatMul(n, w)  y = Add(h, b)
}"""
CONSTANTS = {"s": doubles(8), "t": doubles(8, seed=1)}
LINEAR = {"w": doubles(8, 6, seed=2), "b": doubles(6, seed=3)}
STREAM = """g (double[b,6] x) => (double[b,6] y) {
    a = MatMul(x, w)  r = Add(a, half)  y = LayerNormalization(r, s)
}"""


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_a_norm_reads_may_be_no_constant(name: str) -> None:
    text = NORM.replace("[b,8] x)", f"[b,8] x, double[8] {name})")
    kept = {key: value for key, value in CONSTANTS.items() if key != name}
    model = graph(text, **kept, **LINEAR)
    assert_refused("absorb_input_scales", model, f"{name} is no vector of finite constants")


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_a_norm_reads_may_be_overridden(name: str) -> None:
    model = graph(NORM, **CONSTANTS, **LINEAR)
    model.graph.inputs.append(model.graph.initializers[name])
    reason = f"{name} is also an input of the model, which callers may override"
    assert_refused("absorb_input_scales", model, reason)


def test_a_bias_that_is_computed_stays() -> None:
    text = NORM.replace("n = Layer", "u = Tanh(t)  n = Layer").replace("(x, s, t)", "(x, s, u)")
    model = graph(text, **CONSTANTS, **LINEAR)
    assert_refused("absorb_input_scales", model, "u is no vector of finite constants")


def test_a_bias_of_rank_two_is_absorbed() -> None:
    feeds = {"x": doubles(3, 8, seed=9)}
    constants = {name: value.reshape(1, 8) for name, value in CONSTANTS.items()}
    assert_exact("absorb_input_scales", NORM, feeds, **constants, **LINEAR)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=["scalar", "vector", "matrix"])
@pytest.mark.parametrize("inputs", ["a, half", "half, a"])
def test_one_number_in_a_residual_stream(shape: tuple[int, ...], inputs: str) -> None:
    half = np.full(shape, 0.5)
    text = STREAM.replace("a, half", inputs)
    model = graph(text, w=doubles(6, 6), s=doubles(6), half=half)
    assert_refused("layer_norm_to_rms_norm", model, "half is broadcast over the features")
