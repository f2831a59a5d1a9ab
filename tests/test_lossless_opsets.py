"""The exact rewrites at the oldest opsets, and at those where the form of a node changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lossless import assert_exact, doubles
from numpy.typing import NDArray

SPLIT = """g (double[b,8] x) => (double[b,6] q, double[b,4] k, double[b,4] v) {
    h = MatMul(x, wq)  q = Add(h, bq)  k = MatMul(x, wk)  v = Gemm <transB = 1> (x, wv, bv)
}"""
MERGED = """g (double[b,8] x) => (double[b,6] y) {
    h = MatMul(x, w)  k = Add(h, b)  y = Gemm <transB = 1> (k, v, c)
}"""
SCALED = "g (double[b,8] x) => (double[b,6] y) { h = MatMul(x, w)  k = Add(h, b)  y = Mul(k, s) }"
INPUT = """g (double[b,8] x) => (double[b,6] y) {
    m = Mul(x, s)  n = Add(m, t)  h = MatMul(n, w)  y = Add(h, b)
}"""
NORM = """g (int64[b,t] i) => (double[b,t,6] y) {
    e = Gather(table, i)  a = Tanh(e)  n = LayerNormalization(a, s)
    z = MatMul(n, w)  r = Add(a, z)  y = LayerNormalization(r, s, t)
}"""
W, B, S = doubles(8, 6), doubles(6, seed=1), doubles(6, seed=2)
CASES: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {
    "fuse_siblings": (
        SPLIT,
        {
            "wq": W,
            "bq": B,
            "wk": doubles(8, 4, seed=2),
            "wv": doubles(4, 8, seed=3),
            "bv": doubles(4, seed=4),
        },
    ),
    "merge_linears": (MERGED, {"w": W, "b": B, "v": doubles(6, 6, seed=3), "c": S}),
    "absorb_scales": (SCALED, {"w": W, "b": B, "s": S}),
    "absorb_input_scales": (INPUT, {"w": W, "b": B, "s": doubles(8), "t": doubles(8, seed=3)}),
}


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
@pytest.mark.parametrize("name", CASES)
def test_exact(name: str, opset: int) -> None:
    text, weights = CASES[name]
    assert_exact(name, text, {"x": doubles(3, 8, seed=9)}, opset=opset, **weights)


@pytest.mark.parametrize("opset", [17, 18, 22, 23])
def test_norms_are_exact(opset: int) -> None:
    weights = {"table": doubles(9, 6), "s": S, "t": B, "w": doubles(6, 6, seed=3)}
    feeds = {"i": np.array([[1, 8, 3, 0]])}
    assert_exact("layer_norm_to_rms_norm", NORM, feeds, opset=opset, **weights)
