from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from lossless import Golden, assert_exact, assert_refused, doubles, rewritten, text_of
from numpy.typing import NDArray

PASS = "layer_norm_to_rms_norm"
BLOCK = """g (int64[b,t] i) => (double[b,t,6] y) {
    e = Gather(table, i)  p = Slice(positions, start, length, axis)  x = Add(e, p)
    n = LayerNormalization <axis = -1, epsilon = 0.001> (x, g1, h1)
    u = MatMul(n, w1)  v = Tanh(u)  z = MatMul(v, w2)  o = Add(z, b2)
    r = Add(x, o)
    y = LayerNormalization <epsilon = 0.001> (r, g2)
}"""
START, LENGTH, AXIS = (np.array([value], np.int64) for value in (0, 4, 0))
WEIGHTS: dict[str, NDArray[Any]] = {
    "table": doubles(9, 6),
    "positions": doubles(5, 6, seed=1),
    "g1": doubles(6, seed=2),
    "h1": doubles(6, seed=3),
    "w1": doubles(6, 8, seed=4),
    "w2": doubles(8, 6, seed=5),
    "b2": doubles(6, seed=6),
    "g2": doubles(6, seed=7),
    "start": START,
    "length": LENGTH,
    "axis": AXIS,
}
FEEDS = {"i": np.array([[1, 8, 3, 0]])}


def model(text: str = BLOCK, *, opset: int = 20, **more: NDArray[Any]) -> ir.Model:
    return graph(text, opset=opset, **WEIGHTS, **more)


def test_block(golden: Golden) -> None:
    golden(text_of(PASS, model()))


def test_opset_23(golden: Golden) -> None:
    golden(text_of(PASS, model(opset=23)))


@pytest.mark.parametrize("opset", [17, 20, 23])
def test_exact(opset: int) -> None:
    assert_exact(PASS, BLOCK, FEEDS, opset=opset, **WEIGHTS)


def test_writers_are_centred() -> None:
    found = model()
    rewritten(PASS, found)
    for name in ("table", "positions", "w2", "b2"):
        tensor = found.graph.initializers[name].const_value
        assert tensor is not None
        assert np.abs(tensor.numpy().mean(axis=-1)).max() < 1e-16


def test_tied_table_is_centred_at_run_time() -> None:
    text = BLOCK.replace("[b,t,6] y)", "[b,t,6] y, double[b,t,9] logits)").replace(
        "}", "h = Transpose <perm = [1, 0]> (table)  logits = MatMul(y, h) }"
    )
    assert_exact(PASS, text, FEEDS, **WEIGHTS)
    assert "1 value at run time" in rewritten(PASS, model(text)).done[0]


def test_activation_that_writes_is_centred_at_run_time(golden: Golden) -> None:
    text = BLOCK.replace("x = Add(e, p)", "a = Tanh(e)  x = Add(a, p)")
    assert_exact(PASS, text, FEEDS, **WEIGHTS)
    golden(text_of(PASS, model(text)))


def test_linear_that_others_read_is_centred_at_run_time() -> None:
    text = BLOCK.replace("[b,t,6] y)", "[b,t,6] y, double[b,t,6] o)")
    assert_exact(PASS, text, FEEDS, **WEIGHTS)


def test_sum_that_feeds_the_norm_alone() -> None:
    text = "g (double[b,6] x) => (double[b,6] y) { z = MatMul(x, w)  y = LayerNormalization(z, s) }"
    assert_exact(PASS, text, {"x": doubles(3, 6)}, w=doubles(6, 6), s=doubles(6))


POST = """g (double[b,6] x) => (double[b,6] y) {
    z = MatMul(x, w)  r = Add(x, z)  y = LayerNormalization(r, s)
}"""


def test_refuses_post_layer_norm() -> None:
    found = graph(POST, w=doubles(6, 6), s=doubles(6))
    assert_refused(PASS, found, "1 value would be centred at run time, to save 1 norm the mean")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[b,t,6] y)", "[b,t,6] y, double[b,t,6] r)", "the model returns the residual stream"),
        (
            "[b,t,6] y)", "[b,t,6] y, double[b,t,6] k)", "Tanh reads the residual stream",
        ),
        ("<epsilon = 0.001>", "<axis = 1, epsilon = 0.001>", "more than the last axis"),
        ("y = Layer", "y, mean = Layer", "the mean or deviation of y is read"),
        ("x = Add(e, p)", "q = Add(e, p)  x = Add(q, wide)", "is broadcast over the features"),
    ],
    ids=["output", "reader", "axes", "mean", "broadcast"],
)  # fmt: skip
def test_refusals(old: str, new: str, reason: str) -> None:
    text, more = BLOCK.replace(old, new), {}
    if "Tanh" in reason:
        text = text.replace("r = Add(x, o)", "r = Add(x, o)  k = Tanh(r)")
    if "mean" in new:
        text = text.replace("[b,t,6] y)", "[b,t,6] y, float[b,t,1] mean)")
    if "axis = 1" in new:
        more["g2"] = doubles(4, 6)
    if "wide" in new:
        more["wide"] = doubles(1)
    found = graph(text, **{**WEIGHTS, **more})
    assert_refused(PASS, found, reason)


def test_refuses_half_types() -> None:
    text = (
        POST.replace("double", "float16").replace("r = Add(x, z)  ", "").replace("(r, s)", "(z, s)")
    )
    weights = {"w": doubles(6, 6).astype(np.float16), "s": doubles(6).astype(np.float16)}
    assert_refused(PASS, graph(text, **weights), "float32 or float64")
