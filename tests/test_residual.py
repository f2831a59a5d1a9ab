"""Residuals behind codes: their texts, fits and graphs, and where they are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal, outputs, replaced
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from relax_models import compile_model, run
from structure_cases import SITE, stats_of, weight_of
from tvm.target import Target
from undense.backend.layer_check import check_layers
from undense.backend.onnx_runtime import save
from undense.backend.relax_build.finishing import finish_products
from undense.backend.relax_build.fusion import fuse
from undense.backend.relax_build.walker import Walk
from undense.passes.decide import decide, with_activations
from undense.passes.errors import FitError, LoweringError, SchemeError
from undense.passes.linalg import fit_moment, project_low_rank, relative_error
from undense.passes.nodes import structured_nodes
from undense.passes.scheme import parse_scheme
from undense.passes.sites import find_sites
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.residual import Residual
from undense.passes.structures.trit_planes import TritPlanes

SHAPE = (48, 128)
CODES = [IntCodes(bits_=4), IntCodes(bits_=3), TritPlanes(planes=1), TritPlanes(planes=2)]
PROJECTION = "g (float[b,s,64] x) => (float[b,s,48] y) { y = MatMul(x, w) }"
PARALLEL = """g (float[b,s,64] x, float[b,s,48] other) => (float[b,s,48] y) {
  product = MatMul(x, w)  biased = Add(product, bias)  active = Relu(biased)
  y = Mul(active, other)
}"""


# Texts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("int_codes{bits=4}+residual{rank=3}", Residual(IntCodes(bits_=4), 3)),
        (" trit_planes { planes = 1 } + residual ", Residual(TritPlanes(planes=1), 16)),
        ("int_codes+residual{rank=1}", Residual(IntCodes(), 1)),
    ],
)
def test_a_residual_stands_behind_codes(text: str, wanted: Residual) -> None:
    assert parse_scheme(text) == wanted
    assert parse_scheme(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("residual{rank=3}", "stands behind codes: int_codes{bits=4}+residual{rank=3}"),
        ("low_rank+residual", "behind int_codes or trit_planes, not behind low_rank{ratio=0.5}"),
        ("dense+residual", "dense takes no fields and no residual"),
        ("int_codes+low_rank", "behind a + stands residual, not 'low_rank'"),
        ("int_codes+residual{rank=0}", "rank is at least 1, not 0"),
        ("int_codes+residual{ratio=0.1}", "unknown field 'ratio'; known are rank"),
        ("int_codes{bits=5}+residual", "bits is one of 3, 4, 6, 8, not '5'"),
        ("int_codes+", "not of the form name{field=value,...}"),
        ("int_codes+residual+residual", "not of the form name{field=value,...}"),
        ("wood+residual", "unknown name 'wood'; known are auto, dense, int_codes, low_rank, mon"),
    ],
)
def test_other_sums_are_refused(text: str, message: str) -> None:
    with pytest.raises(SchemeError) as raised:
        parse_scheme(text)
    assert message in str(raised.value)
    assert text in str(raised.value)


def test_a_rank_that_the_shape_does_not_have_is_refused_by_name() -> None:
    structure = Residual(IntCodes(bits_=4), 9)
    for call in (
        lambda: structure.resolve(8, 20, site=SITE),
        lambda: structure.fit(np.ones((8, 20)), None, seed=0, site=SITE),
    ):
        with pytest.raises(FitError, match=f"^{SITE}: .*rank 9 is more than a 8×20 weight has"):
            call()


def test_rounding_of_x_is_that_of_the_codes() -> None:
    structure = Residual(IntCodes(bits_=4), 3)
    assert with_activations(structure, "int8") == Residual(IntCodes(4, activations="int8"), 3)
    exact = Residual(IntCodes(bits_=4, activations="float"), 3)
    assert with_activations(exact, "int8") == exact


# Fits


@given(
    st.integers(2, 12), st.integers(2, 24), st.data(), st.sampled_from(CODES), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_codes_and_low_rank_add_up(
    rows: int, columns: int, data: st.DataObject, codes: IntCodes | TritPlanes, seed: int
) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight = weight_of((rows, columns), seed)
    structure = Residual(codes, rank)
    factors = structure.fit(weight, None, seed=0, site=SITE)
    thin = factors["down"].astype(np.float64) @ factors["up"]
    coded = codes.dense({"codes": factors["codes"], "scales": factors["scales"]})
    np.testing.assert_array_equal(structure.dense(factors), coded + thin.T)
    assert np.linalg.matrix_rank(thin) <= rank
    assert relative_error(weight, structure.dense(factors), None) <= relative_error(
        weight, coded, None
    )
    if rank == min(rows, columns):
        assert_close(structure.dense(factors), weight, reduction=columns)


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@pytest.mark.parametrize("codes", CODES, ids=str)
def test_fitting_in_turns_beats_one_after_the_other(
    codes: IntCodes | TritPlanes, data: bool
) -> None:
    weight, stats = weight_of(SHAPE), stats_of(SHAPE[1]) if data else None
    moment = fit_moment(stats, SHAPE[1], SITE)
    coded = codes.dense(codes.fit(weight, stats, seed=0, site=SITE))
    down, up = project_low_rank(weight - coded, moment, 4)
    once = relative_error(weight, coded + (down @ up).T, moment)
    structure = Residual(codes, 4)
    factors = structure.fit(weight, stats, seed=0, site=SITE)
    turns = relative_error(weight, structure.dense(factors), moment)
    assert turns < 0.98 * once < relative_error(weight, coded, moment)


def test_the_residual_is_the_best_one_for_its_codes() -> None:
    weight, stats = weight_of(SHAPE).astype(np.float64), stats_of(SHAPE[1])
    structure = Residual(IntCodes(bits_=3), 5)
    factors = structure.fit(weight, stats, seed=0, site=SITE)
    coded = structure.codes.dense({name: factors[name] for name in ("codes", "scales")})
    moment = fit_moment(stats, SHAPE[1], SITE)
    assert moment is not None
    missed = weight - coded
    values = np.linalg.eigvalsh(missed @ moment @ missed.T)
    found = missed - (factors["down"].astype(np.float64) @ factors["up"]).T
    assert np.trace(found @ moment @ found.T) == pytest.approx(values[:-5].sum(), rel=1e-4)


# Graphs


def test_only_the_codes_take_rounded_activations() -> None:
    structure = Residual(IntCodes(bits_=8, activations="int8"), 4)
    factors = structure.fit(weight_of(SHAPE), None, seed=0, site=SITE)
    x = np.random.default_rng(0).standard_normal((3, SHAPE[1]))
    codes = {name: factors[name] for name in ("codes", "scales")}
    thin = x @ factors["down"].astype(np.float64) @ factors["up"]
    wanted = structure.codes.reference(codes, x) + thin
    np.testing.assert_allclose(structure.reference(factors, x), wanted, rtol=1e-12)
    exact = dataclasses.replace(structure, codes=structure.codes.with_activations("float"))
    assert np.abs(exact.reference(factors, x) - wanted).max() > 1e-4


@pytest.mark.parametrize("text", ["int_codes{bits=4}", "trit_planes{planes=3,activations=int8}"])
def test_onnx_runtime_is_held_to_the_sum(text: str, tmp_path: Path) -> None:
    model = replaced(graph(PROJECTION, w=normal(64, 48)), f"{text}+residual{{rank=3}}")
    model.ir_version = 10
    save(model, tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    error = check_layers(model, tmp_path, [{"x": x}])
    assert error is not None
    assert error < 1e-5
    up = model.graph.initializers["w.up"]
    assert up.const_value is not None
    up.const_value = ir.tensor(1.01 * up.const_value.numpy())
    with pytest.raises(LoweringError, match=r"^w: ONNX Runtime computes .*residual"):
        check_layers(model, tmp_path, [{"x": x}])


def test_the_kernel_of_the_codes_adds_the_residual_and_what_follows() -> None:
    weights = {"w": normal(64, 48), "bias": normal(48, seed=1)}
    model = replaced(graph(PARALLEL, **weights), "int_codes{bits=4,group=32}+residual{rank=3}")
    with Target({"kind": "llvm"}):
        walk = Walk(model)
        module = finish_products(fuse(walk.module), walk.builder.products)
    names = {str(variable.name_hint) for variable in module.functions} - {"main"}
    (product,) = names - {"low_rank"}
    assert product.startswith("int_codes_residual_")
    compiled = compile_model(model)
    for leading in ((1, 1), (2, 5)):
        feeds = {"x": normal(*leading, 64, seed=2), "other": normal(*leading, 48, seed=3)}
        wanted = outputs(model, **feeds)["y"]
        assert_close(run(compiled, feeds)[0], wanted, reduction=64)


def test_a_weight_of_several_uses_is_stored_once() -> None:
    text = "g (float[b,64] x) => (float[b,64] y) { h = MatMul(x, w)  y = MatMul(h, w) }"
    model = replaced(graph(text, w=normal(64, 64)), "int_codes{bits=4}+residual{rank=3}")
    assert sorted(model.graph.initializers) == ["w.codes", "w.down", "w.scales", "w.up"]
    first, second = structured_nodes(model)
    assert first.node.inputs[1:] == second.node.inputs[1:]


@pytest.mark.parametrize(
    "text",
    [
        "g (int64[b] i) => (float[b,32] y) { y = Gather(emb, i) }",
        """g (int64[b] i) => (float[b,64] y) {
          e = Gather(emb, i)  t = Transpose<perm=[1,0]>(emb)  y = MatMul(e, t)
        }""",
    ],
    ids=["embedding", "tied head"],
)
def test_a_gathered_weight_stays_dense_with_the_reason(text: str) -> None:
    (site,), _ = find_sites(graph(text, emb=normal(64, 32)))
    choice = decide(site, Residual(IntCodes(bits_=8), 2), "float")
    assert choice.scheme == "dense"
    assert choice.reason == (
        "kept dense: an embedding cannot be stored as int_codes+residual{rank=2}"
    )


def test_a_residual_as_large_as_the_weight_is_not_taken() -> None:
    (site,), _ = find_sites(graph(PROJECTION, w=normal(64, 48)))
    assert decide(site, Residual(IntCodes(bits_=4), 4), "float").scheme != "dense"
    choice = decide(site, Residual(IntCodes(bits_=4), 48), "float")
    assert choice.scheme == "dense"
    assert "not smaller" in choice.reason
