from __future__ import annotations

import pytest
from graphs import graph
from lossless import Golden, assert_exact, assert_refused, doubles, rewritten, text_of

PASS = "absorb_scales"
LAYER_SCALE = """g (double[b,8] x) => (double[b,6] y) {
    h = MatMul(x, w)  c = Add(h, b)  z = Mul(s, c)  y = Div(z, d)
}"""
WEIGHTS = {
    "w": doubles(8, 6),
    "b": doubles(6, seed=1),
    "s": doubles(6, seed=2),
    "d": doubles(1, seed=3),
}
PLAIN = "g (double[b,8] x) => (double[b,6] y) { h = MatMul(x, w)  y = Mul(h, s) }"
OWN = {"w": doubles(8, 6), "s": doubles(6)}


def test_layer_scale(golden: Golden) -> None:
    golden(text_of(PASS, graph(LAYER_SCALE, **WEIGHTS)))


def test_exact() -> None:
    assert_exact(PASS, LAYER_SCALE, {"x": doubles(3, 8, seed=5)}, **WEIGHTS)


def test_gemm_and_transposed_weight_are_exact() -> None:
    gemm = PLAIN.replace("h = MatMul(x, w)", "h = Gemm <transB = 1> (x, w, b)")
    assert_exact(
        PASS, gemm, {"x": doubles(3, 8)}, w=doubles(6, 8), b=doubles(6, seed=1), s=doubles(6)
    )
    behind = PLAIN.replace("h = MatMul(x, w)", "t = Transpose(w)  h = MatMul(x, t)")
    assert_exact(PASS, behind, {"x": doubles(3, 8)}, w=doubles(6, 8), s=doubles(6))


def test_shared_bias_is_copied() -> None:
    text = """g (double[b,8] x) => (double[b,6] y, double[b,6] v) {
        h = MatMul(x, w)  c = Add(h, b)  y = Mul(c, s)  k = MatMul(x, u)  v = Add(k, b)
    }"""
    weights = {"w": doubles(8, 6), "u": doubles(8, 6, seed=4), "b": doubles(6), "s": doubles(6)}
    assert_exact(PASS, text, {"x": doubles(3, 8)}, **weights)


def test_refuses_a_shared_weight() -> None:
    text = """g (double[b,8] x) => (double[b,6] y, double[b,6] v) {
        h = MatMul(x, w)  y = Mul(h, s)  v = MatMul(y, t)  k = MatMul(x, w)
    }"""
    text = text.replace("v = MatMul(y, t)  k = MatMul(x, w)", "v = MatMul(x, w)")
    assert_refused(PASS, graph(text, **OWN), "the weight w is read elsewhere too")


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        (PLAIN.replace("(double[b,6] y)", "(double[b,6] y, double[b,6] h)"), (6,)),
        (PLAIN.replace("y = Mul(h, s)", "k = Mul(h, s)  y = Sub(k, h)"), (6,)),
        (PLAIN.replace("Mul(h, s)", "Div(s, h)"), (6,)),
        (PLAIN.replace("h = MatMul(x, w)", "k = MatMul(x, w)  h = Tanh(k)"), (6,)),
        (PLAIN.replace("[b,8]", "[4,8]").replace("[b,6]", "[4,6]"), (4, 1)),
        (PLAIN.replace("(double[b,6] y)", "(double[1,b,6] y)"), (1, 1, 6)),
    ],
    ids=["output", "second_reader", "inverse", "activation", "rows", "rank"],
)
def test_leaves_what_is_no_scale_of_its_output(text: str, scale: tuple[int, ...]) -> None:
    assert not rewritten(PASS, graph(text, w=doubles(8, 6), s=doubles(*scale))).done
