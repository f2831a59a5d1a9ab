from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from lossless import Golden, assert_exact, assert_refused, doubles, rewritten, text_of

PASS = "fuse_siblings"
ATTENTION = """g (double[b,8] x) => (double[b,6] q, double[b,4] k, double[b,4] v) {
    h = MatMul(x, wq)  q = Add(h, bq)  k = MatMul(x, wk)  v = Gemm <transB = 1> (x, wv, bv)
}"""
WEIGHTS = {
    "wq": doubles(8, 6),
    "bq": doubles(6, seed=1),
    "wk": doubles(8, 4, seed=2),
    "wv": doubles(4, 8, seed=3),
    "bv": doubles(4, seed=4),
}
GATED = """g (double[b,8] x) => (double[b,6] y) {
    g0 = MatMul(x, wg)  g1 = Sigmoid(g0)  u = MatMul(x, wu)  y = Mul(g1, u)
}"""
GATE = {"wg": doubles(8, 6), "wu": doubles(8, 6, seed=1)}
FEEDS = {"x": doubles(3, 8, seed=9)}


def test_attention(golden: Golden) -> None:
    golden(text_of(PASS, graph(ATTENTION, **WEIGHTS)))


@pytest.mark.parametrize("opset", [18, 20])
def test_exact(opset: int) -> None:
    assert_exact(PASS, ATTENTION, FEEDS, opset=opset, **WEIGHTS)
    assert_exact(PASS, GATED, FEEDS, opset=opset, **GATE)


def test_twice_is_once() -> None:
    model = graph(GATED, **GATE)
    rewritten(PASS, model)
    assert not rewritten(PASS, model).done


def test_refuses_a_shared_weight() -> None:
    text = GATED.replace("MatMul(x, wu)", "MatMul(x, wg)")
    assert_refused(PASS, graph(text, wg=doubles(8, 6)), "the weight wg is read elsewhere too")


def test_one_reader_is_no_sibling() -> None:
    text = "g (double[b,8] x) => (double[b,6] y) { y = MatMul(x, w) }"
    assert not rewritten(PASS, graph(text, w=doubles(8, 6))).done


def test_half_types_are_left() -> None:
    weights = {name: value.astype(np.float16) for name, value in GATE.items()}
    assert not rewritten(PASS, graph(GATED.replace("double", "float16"), **weights)).done
