from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal, outputs
from undense.passes.bias_correction import has_bias, mean_error
from undense.passes.check import check
from undense.passes.errors import PlanError
from undense.passes.fit import FitResult, fit_site
from undense.passes.linalg import relative_error
from undense.passes.plan import Choice, Plan
from undense.passes.precision import ConvertFloats
from undense.passes.replace import ReplaceDense
from undense.passes.sites import Site, find_sites
from undense.passes.stats import Stats, StatsAccumulator
from undense.passes.structures.low_rank import LowRank
from undense.passes.text import show

MATMUL = "g (float[b,32] x) => (float[b,48] y) { h = MatMul(x, w)  y = Add(c, h) }"
GEMM = "g (float[b,32] x) => (float[b,48] y) { y = Gemm <transB = 1> (x, w, c) }"
CONV = "g (float[b,32,5] x) => (float[b,48,5] y) { y = Conv(x, w, c) }"
BARE = "g (float[b,32] x) => (float[b,48] y) { y = MatMul(x, w) }"
TWICE = """g (float[b,32] x) => (float[b,48] y, float[b,48] z) {
    h = MatMul(x, w)  y = Add(h, c)  k = MatMul(x, w)  z = Add(k, d)
}"""
FORMS = {
    "matmul": (MATMUL, (32, 48)),
    "gemm": (GEMM, (48, 32)),
    "conv": (CONV, (48, 32, 1)),
}
ROWS = np.random.default_rng(5).standard_normal((400, 32)).astype(np.float32) + 3
BIAS = normal(48, seed=2)


def statistics() -> Stats:
    accumulator = StatsAccumulator(32)
    accumulator.update(ROWS)
    return accumulator.result()


def fitted(model: ir.Model, stats: Stats | None) -> tuple[Site, FitResult]:
    (site,), _ = find_sites(model)
    return site, fit_site(site, LowRank(rank=4), stats, seed=0, form="fast")


def replaced(model: ir.Model, site: Site, result: FitResult) -> ir.Model:
    plan = Plan((Choice(site.name, site.in_features, site.out_features, "low_rank{rank=4}"),))
    ReplaceDense(plan, {site.name: result.fitted})(model)
    check(model)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_outputs_have_the_mean_of_the_dense_ones(form: str) -> None:
    text, shape = FORMS[form]
    rows = ROWS if form != "conv" else ROWS.reshape(80, 5, 32).transpose(0, 2, 1)
    weights = {"w": normal(*shape), "c": BIAS}
    dense = outputs(graph(text, **weights), x=np.ascontiguousarray(rows))["y"]
    model = graph(text, **weights)
    site, result = fitted(model, statistics())
    actual = outputs(replaced(model, site, result), x=np.ascontiguousarray(rows))["y"]
    axes = tuple(i for i in range(dense.ndim) if i != 1)
    np.testing.assert_allclose(actual.mean(axis=axes), dense.mean(axis=axes), atol=1e-5)
    product = dense - BIAS.reshape(-1, *[1] * (dense.ndim - 2))
    spread = np.linalg.norm(actual - dense) / np.linalg.norm(product)
    assert spread == pytest.approx(result.relative_error, rel=1e-4)


def test_fit_with_a_bias_is_better_than_without() -> None:
    weight = normal(32, 48)
    _, corrected = fitted(graph(MATMUL, w=weight, c=BIAS), statistics())
    _, plain = fitted(graph(BARE, w=weight), statistics())
    assert plain.fitted.bias_correction is None
    assert corrected.relative_error < plain.relative_error


def test_text(golden: Callable[[str], None]) -> None:
    model = graph(MATMUL, w=normal(32, 48), c=BIAS)
    before = show(model)
    site, result = fitted(model, statistics())
    golden(f"{before}\n=== ReplaceDense ===\n\n{show(replaced(model, site, result))}")


def test_each_use_keeps_its_own_bias() -> None:
    weights = {"w": normal(32, 48), "c": BIAS, "d": normal(48, seed=3)}
    model = graph(TWICE, **weights)
    site, result = fitted(model, statistics())
    found = outputs(replaced(model, site, result), x=ROWS[:3])
    difference = found["y"] - found["z"]
    np.testing.assert_allclose(difference, np.tile(BIAS - weights["d"], (3, 1)), atol=1e-5)


def test_shared_bias_stays_for_others() -> None:
    text = """g (float[b,32] x) => (float[b,48] y, float[b,48] z) {
        h = MatMul(x, w)  y = Add(h, c)  r = Relu(y)  z = Add(r, c)
    }"""
    model = graph(text, w=normal(32, 48), c=BIAS)
    site, result = fitted(model, statistics())
    found = outputs(replaced(model, site, result), x=ROWS[:3])
    np.testing.assert_allclose(
        found["z"] - np.maximum(found["y"], 0), np.tile(BIAS, (3, 1)), atol=1e-5
    )


def test_half_model_takes_the_correction_in_its_type() -> None:
    captured = graph(MATMUL, w=normal(32, 48), c=BIAS)
    site, result = fitted(captured, statistics())
    model = captured.clone()
    ConvertFloats(ir.DataType.FLOAT16)(model)
    dense = outputs(captured, x=ROWS)["y"]
    actual = outputs(replaced(model, site, result), x=ROWS.astype(np.float16))["y"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual.mean(axis=0, dtype=np.float64), dense.mean(axis=0), atol=2e-2)


@pytest.mark.parametrize(
    "text",
    [
        BARE,
        MATMUL.replace("(float[b,48] y)", "(float[b,48] y, float[b,48] h)"),
        MATMUL.replace("y = Add(c, h)", "k = Relu(h)  y = Add(c, k)"),
        MATMUL.replace("y = Add(c, h)", "s = ReduceSum <keepdims = 1> (h)  y = Add(s, h)"),
        GEMM.replace("transB = 1", "transB = 1, beta = 0.5"),
        GEMM.replace("(x, w, c)", "(x, w)"),
        TWICE.replace("z = Add(k, d)", "z = Relu(k)"),
        "g (float[b,32] x, int64[b] i) => (float[b,48] y, float[b,32] z) {"
        "t = Transpose <perm = [1, 0]> (w)  h = MatMul(x, t)  y = Add(h, c)  z = Gather(w, i) }",
    ],
    ids=["none", "output", "activation", "no_constant", "scaled", "gemm", "one_of_two", "gather"],
)
def test_no_bias_no_correction(text: str) -> None:
    shape = (48, 32) if "Gemm" in text or "Gather" in text else (32, 48)
    given = {"w": normal(*shape), "c": BIAS, "d": BIAS}
    model = graph(
        text, **{name: value for name, value in given.items() if re.search(rf"\b{name}\b", text)}
    )
    (site,), _ = find_sites(model)
    assert not has_bias(site)


def test_data_free_fits_have_no_correction() -> None:
    _, result = fitted(graph(MATMUL, w=normal(32, 48), c=BIAS), None)
    assert result.fitted.bias_correction is None


def test_correction_of_a_bias_that_is_not_there() -> None:
    _, result = fitted(graph(MATMUL, w=normal(32, 48), c=BIAS), statistics())
    model = graph(BARE, w=normal(32, 48))
    (site,), _ = find_sites(model)
    text = show(model)
    with pytest.raises(PlanError, match=r"^w: it was fitted with a bias behind it"):
        replaced(model, site, result)
    assert show(model) == text


def test_mean_error() -> None:
    weight, other, stats = normal(48, 32), normal(48, 32, seed=1), statistics()
    expected = (ROWS.astype(np.float64) @ (weight - other).T.astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(mean_error(weight, other, stats), expected, rtol=1e-5, atol=1e-6)


def test_centred_statistics_are_those_of_centred_rows() -> None:
    accumulator = StatsAccumulator(32)
    accumulator.update(ROWS - ROWS.mean(axis=0))
    centred = statistics().centred()
    np.testing.assert_allclose(centred.second_moment, accumulator.result().second_moment, atol=1e-4)
    assert not centred.mean.any()
    weight, other = normal(48, 32), normal(48, 32, seed=1)
    whole, left = statistics().second_moment, centred.second_moment
    assert relative_error(weight, other, whole, left) < relative_error(weight, other, whole)
