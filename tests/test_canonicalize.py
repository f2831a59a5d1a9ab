from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from forms import FORMS, IN, OUT, W
from graphs import exact, graph, normal, outputs
from helpers import assert_close
from undense.passes.canonicalize import CanonicalizeDense
from undense.passes.check import check
from undense.passes.errors import PlanError
from undense.passes.plan import Choice, Plan
from undense.passes.replace import ReplaceDense
from undense.passes.sites import find_sites
from undense.passes.text import show

EACH_FORM = pytest.mark.parametrize("name", FORMS)


@EACH_FORM
def test_site(name: str) -> None:
    form = FORMS[name]
    (site,), refusals = find_sites(form.model())
    assert refusals == []
    assert (site.name, site.out_features, site.in_features) == ("w", OUT, IN)
    assert not site.gathered
    weight = site.weight()
    assert weight.dtype == np.float32
    assert weight.flags.c_contiguous
    np.testing.assert_array_equal(weight, form.weight.astype(np.float32))


@EACH_FORM
def test_feature_axis_holds_in_features(name: str) -> None:
    form = FORMS[name]
    (site,), _ = find_sites(form.model())
    (use,) = site.uses
    assert use.feature_axis is not None
    assert form.x[use.feature_axis] == IN


@EACH_FORM
def test_forms(name: str, golden: Callable[[str], None]) -> None:
    model = FORMS[name].model()
    before = show(model)
    assert CanonicalizeDense(["w"])(model).modified
    check(model)
    golden(f"{before}\n=== CanonicalizeDense ===\n\n{show(model)}")


@EACH_FORM
def test_outputs_stay(name: str) -> None:
    form = FORMS[name]
    dense = outputs(form.model(), **form.feeds())
    model = form.model()
    CanonicalizeDense(["w"])(model)
    assert_close(outputs(model, **form.feeds())["y"], dense["y"], reduction=IN, dtype=form.dtype)


@EACH_FORM
def test_exact_factors_keep_outputs_with_no_adapter_too_many(name: str) -> None:
    form = FORMS[name]
    dense = outputs(form.model(), **form.feeds())
    model = form.model()
    (site,), _ = find_sites(model)
    plan = Plan((Choice("w", IN, OUT, "low_rank"),))
    ReplaceDense(plan, {"w": exact(site)})(model)
    check(model)
    assert "w" not in model.graph.initializers
    operators = [node.op_type for node in model.graph]
    assert tuple(name for name in operators if name != "LowRank") == form.adapters
    narrowest = np.float16 if form.dtype == np.float16 else np.float32
    assert_close(outputs(model, **form.feeds())["y"], dense["y"], reduction=IN, dtype=narrowest)


@EACH_FORM
def test_shapes_and_types_are_written(name: str) -> None:
    form = FORMS[name]
    model = form.model()
    (site,), _ = find_sites(model)
    ReplaceDense(Plan((Choice("w", IN, OUT, "low_rank"),)), {"w": exact(site)})(model)
    for node in model.graph:
        assert node.outputs[0].dtype is not None
        assert node.outputs[0].shape is not None


def test_node_name_and_metadata_stay() -> None:
    model = FORMS["gemm_alpha_beta"].model()
    node = model.graph[0]
    node.name, node.metadata_props["namespace"] = "/fc/Gemm", "fc"
    CanonicalizeDense(["w"])(model)
    dense = next(node for node in model.graph if node.op_type == "Dense")
    assert dense.name == "/fc/Gemm"
    assert {node.metadata_props["namespace"] for node in model.graph} == {"fc"}


def test_twice_is_once() -> None:
    model = FORMS["conv_2d"].model()
    CanonicalizeDense(["w"])(model)
    text = show(model)
    assert not CanonicalizeDense(["w"])(model).modified
    assert show(model) == text


def test_dense_is_turned_back_by_an_empty_plan() -> None:
    form = FORMS["gemm_trans_b_bias"]
    model, dense = form.model(), outputs(form.model(), **form.feeds())
    CanonicalizeDense(["w"])(model)
    assert ReplaceDense(Plan((Choice("w", IN, OUT, "dense"),)), {})(model).modified
    assert not model.functions
    assert {node.domain for node in model.graph} == {""}
    assert_close(outputs(model, **form.feeds())["y"], dense["y"], reduction=IN)


def test_gather_is_left() -> None:
    model = graph("g (int64[n] i) => (float[n,32] y) { y = Gather(w, i) }", w=W)
    assert not CanonicalizeDense(["w"])(model).modified


def test_unknown_name() -> None:
    with pytest.raises(PlanError, match=r"^v: the model has no such site"):
        CanonicalizeDense(["v"])(FORMS["matmul"].model())


def test_output_that_is_read_and_returned() -> None:
    text = "g (float[b,32] x) => (float[b,48] h, float[b,48] y) { h = Gemm(x, w, c)  y = Relu(h) }"
    model = graph(text, w=normal(IN, OUT), c=normal(OUT))
    CanonicalizeDense(["w"])(model)
    check(model)
    result = outputs(model, x=normal(3, IN))
    np.testing.assert_array_equal(result["y"], np.maximum(result["h"], 0))
