"""Distortion with exchanged weights is that of a model that has these weights."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from graphs import graph, normal, outputs
from helpers import assert_close
from scipy.special import rel_entr, softmax
from undense.frontend import distortion as distortions
from undense.frontend.distortion import Compared, compared_on, distortion
from undense.frontend.distortion_cache import DistortionCache
from undense.frontend.exchange import Exchange, exchangeable
from undense.frontend.rounding import rounding_errors
from undense.passes.cache import Cache
from undense.passes.errors import CalibrationError
from undense.passes.replace import Fitted
from undense.passes.sites import find_sites
from undense.passes.structures.block_quantized import round_activations
from undense.passes.structures.int_codes import IntCodes

N = 40


def _model(y="y", **changed):
    """Every form of a use: a gather and a head on one weight, Gemm, MatMul with bias, Conv."""
    weights = {
        "table": normal(60, N),
        "first": normal(N, N, seed=1),
        "second": normal(48, N, seed=2),
        "bias": normal(48, seed=3),
        "third": normal(48, N, seed=4),
        "shift": normal(N, seed=5),
    }
    return graph(
        f"""g (int64[t] ids) => (float[t,60] {y}) {{
            h = Gather(table, ids)  a = MatMul(h, first)  r = Relu(a)
            b = Gemm <transB=1> (r, second, bias)
            c = MatMul(b, third)  d = Add(c, shift)
            head = Transpose <perm=[1,0]> (table)  {y} = MatMul(d, head)
        }}""",
        **(weights | changed),
    )


IDS = np.array([1, 5, 7, 59, 0], np.int64)
ORIENTATIONS = {"table": False, "first": True, "second": False, "third": True}
"""Whether the graph stores the transpose of W."""


def _sites(model):
    return {site.name: site for site in find_sites(model)[0]}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_an_exchanged_weight_does_what_it_does_in_the_model(name):
    model = _model()
    other = _sites(model)[name].weight() + 0.1 * normal(*_sites(model)[name].weight().shape, seed=9)
    stored = np.ascontiguousarray(other.T if ORIENTATIONS[name] else other)
    want = outputs(_model(**{name: stored}), ids=IDS)["y"].astype(np.float64)
    dense = outputs(model, ids=IDS)["y"].astype(np.float64)
    with distortion(model, _sites(model), _samples({"ids": IDS})) as measured:
        assert measured.measure == "relative_mse"
        with exchangeable(model, [name]) as dense_model:
            got = dense_model.exchanged([(name, Exchange(other))])({"ids": IDS})["y"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
        expected = np.sum((want - dense) ** 2) / np.sum(dense**2)
        assert measured.of([(name, Exchange(other))]) == pytest.approx(expected, rel=1e-3)
        assert measured.of([(name, Exchange(_sites(model)[name].weight()))]) == 0.0


def test_a_corrected_bias_is_part_of_the_exchange():
    model, sites = _model(), _sites(_model())
    moved = normal(48, seed=8)
    want = outputs(_model(bias=normal(48, seed=3) + moved), ids=IDS)["y"]
    with exchangeable(model, sites) as dense_model:
        exchange = Exchange(sites["second"].weight(), moved)
        got = dense_model.exchanged([("second", exchange)])({"ids": IDS})["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_several_weights_are_exchanged_at_once():
    model, sites = _model(), _sites(_model())
    zero = {name: Exchange(np.zeros_like(site.weight())) for name, site in sites.items()}
    with distortion(model, sites, _samples({"ids": IDS}, {"ids": IDS[:2]})) as measured:
        assert measured.of(zero.items()) == pytest.approx(1.0)


def test_of_logits_it_is_the_divergence():
    model = _model("logits")
    sites = _sites(model)
    other = sites["third"].weight() * np.float32(1.2)
    want = outputs(_model(third=np.ascontiguousarray(other.T)), ids=IDS)["y"].astype(np.float64)
    dense = outputs(_model(), ids=IDS)["y"].astype(np.float64)

    def log_softmax(x):
        return (
            x
            - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - x.max(-1, keepdims=True)
        )

    p, q = log_softmax(dense), log_softmax(want)
    expected = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
    with distortion(model, sites, _samples({"ids": IDS})) as measured:
        assert measured.measure == "kl"
        assert measured.of([("third", Exchange(other))]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("logits_at_once", [1, 50, 1000])
def test_the_divergence_is_that_of_scipy_however_many_rows_are_held(logits_at_once, monkeypatch):
    monkeypatch.setattr(distortions, "_LOGITS", logits_at_once)
    dense, other = normal(2, 7, 20), normal(2, 7, 20, seed=1)
    dense[..., 3] = -np.inf
    p, q = softmax(dense.astype(np.float64), -1), softmax(other.astype(np.float64), -1)
    assert distortions._kl(dense, other) == pytest.approx(rel_entr(p, q).sum(), rel=1e-12)
    assert distortions._kl(dense, dense) == 0.0
    other[..., 5] = -np.inf
    assert distortions._kl(dense, other) == np.inf


def test_weights_are_made_one_after_another():
    model = _model()
    before: list[weakref.ref[Exchange]] = []

    def made():
        for name, site in _sites(model).items():
            gc.collect()
            assert sum(kept() is not None for kept in before) <= 1
            exchange = Exchange(site.weight())
            before.append(weakref.ref(exchange))
            yield name, exchange
            del exchange

    with exchangeable(model, ORIENTATIONS) as dense_model:
        same = dense_model.exchanged(made())({"ids": IDS})
        np.testing.assert_array_equal(same["y"], dense_model.exchanged(())({"ids": IDS})["y"])
    assert len(before) == len(ORIENTATIONS)


def test_weights_that_make_no_numbers_distort_without_end():
    model, sites = _model(), _sites(_model())
    broken = np.full_like(sites["first"].weight(), np.inf)
    with distortion(model, sites, _samples({"ids": IDS})) as measured:
        assert measured.of([("first", Exchange(broken))]) == float("inf")


def test_a_dense_model_without_numbers_is_refused():
    model = _model(shift=np.full(N, np.nan, np.float32))
    with (
        pytest.raises(CalibrationError, match="'y' of the dense model is not a number"),
        distortion(model, _sites(model), _samples({"ids": IDS})),
    ):
        pass


def test_the_model_is_not_changed():
    model = _model()
    with distortion(model, _sites(model), _samples({"ids": IDS})):
        pass
    assert [value.name for value in model.graph.inputs] == ["ids"]
    assert list(_sites(model)) == list(_sites(_model()))


def test_rounding_of_activations_is_measured_on_the_inputs_of_each_layer():
    model = _model()
    sites = find_sites(model)[0]
    found = rounding_errors(model, sites, {"ids": IDS}, {"first": {16, 32}, "second": set()})
    rows = normal(60, N)[IDS].astype(np.float64)
    weight = _sites(model)["first"].weight().astype(np.float64)
    for block in (16, 32):
        rounded = round_activations(rows, block)
        expected = np.linalg.norm((rounded - rows) @ weight.T) / np.linalg.norm(rows @ weight.T)
        assert found["first", block] == pytest.approx(expected, rel=1e-4)
    assert found.keys() == {("first", 16), ("first", 32)}
    assert rounding_errors(model, sites, {"ids": IDS}, {}) == {}


def test_what_is_only_looked_up_has_no_activations_to_round():
    model = graph(
        f"g (int64[t] ids) => (float[t,{N}] y) {{ h = Gather(table, ids)  y = MatMul(h, w) }}",
        table=normal(60, N), w=normal(N, N, seed=1),
    )  # fmt: skip
    sites = find_sites(model)[0]
    found = rounding_errors(model, sites, {"ids": IDS}, {"table": {16}, "w": {16}})
    assert found.keys() == {("w", 16)}


def test_a_distortion_is_measured_once_for_all_that_it_follows_from(tmp_path):
    model, samples = _model(), [{"ids": IDS}]
    calls = []

    def measure():
        calls.append(len(calls))
        return float(len(calls))

    def of(schemes, *, model=model, samples=samples, **fitted):
        cache = DistortionCache(Cache(tmp_path), model, samples, {"seed": 0, **fitted})
        return cache.of(schemes, measure)

    assert of({"a": "int_codes"}) == 1
    assert of({"a": "int_codes"}) == 1
    assert of({"a": "trit_planes"}) == 2
    assert of({"b": "int_codes"}) == 3
    assert of({"a": "int_codes"}, seed=1) == 4
    assert of({"a": "int_codes"}, samples=[{"ids": IDS + 1}]) == 5
    assert of({"a": "int_codes"}, model=_model(first=normal(N, N, seed=9))) == 6
    assert of({"a": "int_codes"}) == 1


def test_what_is_not_finite_is_measured_again(tmp_path):
    cache = DistortionCache(Cache(tmp_path), _model(), [], {})
    assert cache.of({"a": "x"}, lambda: float("inf")) == float("inf")
    assert cache.of({"a": "x"}, lambda: 1.0) == 1.0
    assert DistortionCache(None, _model(), [], {}).of({"a": "x"}, lambda: 2.0) == 2.0


@pytest.mark.parametrize(
    ("name", "axes", "measure"),
    [
        ("logits", [], "kl"),
        ("scores", [], "relative_mse"),
        ("logits", [0, 1], "relative_mse"),  # pixels, whose classes stand in front
    ],
)
def test_logits_are_told_by_their_name_and_their_classes(name, axes, measure):
    model = graph(
        f"""g (float[t,{N}] x) => (float[a,b,c,d] {name}) {{
            z = MatMul(x, w)  {name} = Unsqueeze(z, axes)
        }}""",
        w=normal(N, 8),
        axes=np.array(axes, np.int64),
    )
    model.graph.outputs[0].shape = None
    with distortion(model, ["w"], _samples({"x": normal(3, N, seed=1)})) as measured:
        assert measured.measure == measure


def test_a_single_score_is_no_class():
    """Its softmax is 1 whatever it is: every weight would do."""
    model = graph(
        f"g (float[t,{N}] x) => (float[t,1] logits) {{ logits = MatMul(x, w) }}", w=normal(N, 1)
    )
    with distortion(model, [], _samples({"x": normal(3, N, seed=1)})) as measured:
        assert measured.measure == "relative_mse"


def _samples(*samples):
    return Compared(samples)


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("block", [32, 64, N])
def test_activations_are_rounded_as_the_structures_round_them(opset, block):
    model = graph(
        f"g (float[b,t,{N}] x) => (float[b,t,30] y) {{ a = MatMul(x, w)  y = Tanh(a) }}",
        w=normal(N, 30),
    )
    model.opset_imports[""] = opset
    x = normal(2, 5, N, seed=1)
    x[0, 0], x[0, 1] = 0, x[0, 1] * np.float32(1e-38)
    with exchangeable(model, ["w"]) as exchanged:
        rounded = exchanged.exchanged([("w", Exchange(block=block))])({"x": x})["y"]
        exact = exchanged.exchanged([])({"x": x})["y"]
    assert_close(rounded, np.tanh(round_activations(x, block) @ normal(N, 30)), reduction=N)
    assert_close(exact, np.tanh(x @ normal(N, 30)), reduction=N)
    assert np.abs(rounded - exact).max() > 1e-4


def test_a_structure_that_rounds_does_so_where_it_stands_in():
    structure = IntCodes(bits_=4, group=32, activations="int8")
    model = graph(f"g (float[t,{N}] x) => (float[t,30] y) {{ y = MatMul(x, w) }}", w=normal(N, 30))
    factors, x = structure.random_factors(30, N, seed=0), normal(5, N, seed=1)
    fitted = Fitted(structure, structure.pack(factors, "fast"))
    with exchangeable(model, ["w"]) as exchanged:
        found = exchanged.exchanged([("w", Exchange.of(fitted, (30, N)))])({"x": x})["y"]
    assert_close(found, structure.reference(factors, x), reduction=N)


def test_distortion_is_of_samples_that_nothing_was_fitted_on_if_they_are_enough():
    many = [{"x": normal(4, N, seed=seed)} for seed in range(6)]
    assert compared_on(many[4:], many[:4]) == Compared(tuple(many[4:]))
    few = compared_on(many[5:], many[:5])
    assert few.counts() == {"held_out": 1, "calibrated": 5}
    assert few.notes()[0].startswith("distortion is measured on 5 samples that were calibrated on")
    shared = compared_on(many[4:], many)
    assert shared.counts() == {"held_out": 0, "calibrated": 6}
    long = [{"x": normal(300, N, seed=seed)} for seed in range(3)]
    assert compared_on(long, many).counts() == {"held_out": 2, "calibrated": 0}
