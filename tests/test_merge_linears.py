from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from lossless import Golden, assert_exact, assert_refused, doubles, outputs, rewritten, text_of

PASS = "merge_linears"
BIASED = """g (double[b,8] x) => (double[b,8] y) {
    h = MatMul(x, w1)  c = Add(h, b1)  z = MatMul(c, w2)  y = Add(b2, z)
}"""
WEIGHTS = {
    "w1": doubles(8, 16),
    "b1": doubles(16, seed=1),
    "w2": doubles(16, 8, seed=2),
    "b2": doubles(8, seed=3),
}
CHAIN = """g (double[b,8] x) => (double[b,4] y) {
    h = MatMul(x, w1)  z = Gemm <transB = 1> (h, w2, b2)  y = MatMul(z, w3)
}"""
CHAIN_WEIGHTS = {
    "w1": doubles(8, 16),
    "w2": doubles(12, 16, seed=1),
    "b2": doubles(12, seed=2),
    "w3": doubles(12, 4, seed=3),
}
PLAIN = "g (double[b,8] x) => (double[b,8] y) { h = MatMul(x, w1)  y = MatMul(h, w2) }"


def test_merged(golden: Golden) -> None:
    golden(text_of(PASS, graph(BIASED, **WEIGHTS)))


def test_chain_with_gemm(golden: Golden) -> None:
    golden(text_of(PASS, graph(CHAIN, **CHAIN_WEIGHTS)))


def test_exact() -> None:
    assert_exact(PASS, BIASED, {"x": doubles(3, 8, seed=9)}, **WEIGHTS)
    assert_exact(PASS, CHAIN, {"x": doubles(3, 8, seed=9)}, **CHAIN_WEIGHTS)


@pytest.mark.parametrize(("rank", "merges"), [(3, False), (4, True), (5, True)])
def test_only_where_the_product_is_not_larger(rank: int, merges: bool) -> None:
    model = graph(PLAIN, w1=doubles(8, rank), w2=doubles(rank, 8))
    if merges:
        assert "64 weights instead of" in rewritten(PASS, model).done[0]
    else:
        assert_refused(PASS, model, "the product has 64 weights and the two have 48")


def test_bias_of_the_first_alone() -> None:
    text = BIASED.replace("z = MatMul(c, w2)  y = Add(b2, z)", "y = MatMul(c, w2)")
    weights = {name: value for name, value in WEIGHTS.items() if name != "b2"}
    assert_exact(PASS, text, {"x": doubles(3, 8)}, **weights)


def test_bias_that_another_linear_shares_stays_what_it_was() -> None:
    text = """g (double[b,8] x, double[b,8] z) => (double[b,8] y, double[b,16] v) {
        h = MatMul(x, w1)  c = Add(h, b1)  y = MatMul(c, w2)
        u = MatMul(z, w3)  t = Add(u, b1)  v = Mul(t, s)
    }"""
    weights = {key: WEIGHTS[key] for key in ("w1", "b1", "w2")}
    model = graph(text, **weights, w3=doubles(8, 16, seed=7), s=doubles(16, seed=8))
    feeds = {"x": doubles(3, 8), "z": doubles(3, 8, seed=4)}
    wanted = outputs(model, **feeds)
    rewritten(PASS, model)
    rewritten("absorb_scales", model)
    for key, actual in outputs(model, **feeds).items():
        np.testing.assert_allclose(actual, wanted[key], rtol=0, atol=1e-12)


def test_refuses_a_shared_weight() -> None:
    text = "g (double[b,8] x) => (double[b,8] y) { h = MatMul(x, w)  y = MatMul(h, w) }"
    assert_refused(PASS, graph(text, w=doubles(8, 8)), "the weight w is read elsewhere too")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("h = MatMul(x, w1)", "k = MatMul(x, w1)  h = Relu(k)"),
        PLAIN.replace("(double[b,8] y)", "(double[b,8] y, double[b,16] h)"),
        PLAIN.replace("y = MatMul(h, w2)", "z = MatMul(h, w2)  s = ReduceSum(h)  y = Add(z, s)"),
    ],
    ids=["activation", "output", "second_reader"],
)
def test_leaves_what_is_not_consecutive(text: str) -> None:
    model = graph(text, w1=doubles(8, 16), w2=doubles(16, 8))
    assert not rewritten(PASS, model).done


def test_half_types_are_left() -> None:
    text = PLAIN.replace("double", "float16")
    weights = {
        "w1": doubles(8, 16).astype(np.float16),
        "w2": doubles(16, 8).astype(np.float16),
    }
    assert not rewritten(PASS, graph(text, **weights)).done
