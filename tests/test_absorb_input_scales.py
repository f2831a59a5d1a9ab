from __future__ import annotations

import pytest
from graphs import graph
from lossless import Golden, assert_exact, assert_refused, doubles, rewritten, text_of

PASS = "absorb_input_scales"
NORM = """g (double[b,8] x) => (double[b,6] y, double[b,6] z) {
    n = LayerNormalization(x, s, t)
    h = MatMul(n, w)  y = Add(h, b)  z = Gemm <transB = 1> (n, v, c)
}"""
WEIGHTS = {
    "s": doubles(8),
    "t": doubles(8, seed=1),
    "w": doubles(8, 6, seed=2),
    "b": doubles(6, seed=3),
    "v": doubles(6, 8, seed=4),
    "c": doubles(6, seed=5),
}
SPELLED = NORM.replace("n = LayerNormalization(x, s, t)", "m = Mul(x, s)  n = Add(m, t)")
RMS = """g (double[b,8] x) => (double[b,6] y) { n = RMSNormalization(x, s)  y = MatMul(n, w) }"""
PLAIN = "g (double[b,8] x) => (double[b,6] y) { n = Mul(x, s)  y = MatMul(n, w) }"
OWN = {"s": doubles(8), "w": doubles(8, 6)}
FEEDS = {"x": doubles(3, 8, seed=9)}


def test_layer_norm(golden: Golden) -> None:
    golden(text_of(PASS, graph(NORM, **WEIGHTS)))


def test_product_and_sum(golden: Golden) -> None:
    golden(text_of(PASS, graph(SPELLED, **WEIGHTS)))


def test_exact() -> None:
    assert_exact(PASS, NORM, FEEDS, **WEIGHTS)
    assert_exact(PASS, SPELLED, FEEDS, **WEIGHTS)
    assert_exact(PASS, RMS, FEEDS, opset=23, **OWN)
    assert_exact(PASS, PLAIN.replace("Mul(x, s)", "Div(x, s)"), FEEDS, **OWN)
    assert_exact(PASS, PLAIN, FEEDS, w=doubles(8, 6), s=doubles(1))


def test_twice_is_once() -> None:
    model = graph(NORM, **WEIGHTS)
    assert rewritten(PASS, model).done
    assert not rewritten(PASS, model).done


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[b,6] y)", "[b,6] y, double[b,8] n)", "the model returns it"),
        (
            "y = MatMul(n, w)",
            "q = MatMul(n, w)  k = ReduceSum(n)  y = Add(q, k)",
            "ReduceSum reads",
        ),
        ("n = Mul(x, s)", "n = Add(x, s)", "a linear behind it has no bias"),
        ("y = MatMul(n, w)", "q = MatMul(n, w)  k = MatMul(x, w)  y = Add(q, k)", "w is read else"),
        ("n = Mul(x, s)", "e = Erf(x)  f = Add(e, s)  n = Mul(f, s)", "part of an activation"),
    ],
    ids=["output", "reader", "bias", "shared", "activation"],
)
def test_refusals(old: str, new: str, reason: str) -> None:
    assert_refused(PASS, graph(PLAIN.replace(old, new), **OWN), reason)


def test_an_addend_that_cannot_go_holds_the_product_before_it() -> None:
    text = "g (double[b,8] x) => (double[b,6] y) { m = Mul(x, s)  n = Add(m, t)  y = MatMul(n, w) }"
    assert_refused(PASS, graph(text, **OWN, t=doubles(8)), "a linear behind it has no bias")
