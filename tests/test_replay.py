"""A plan that is carried out again: the same bytes, from what was measured and fitted before."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.passes.cache import Cache
from undense.passes.errors import CalibrationError, PlanError, TargetError
from undense.passes.plan import read_plan

N = 128


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for size alone: times would decide otherwise from run to run."""

    def absent(target: object) -> None:
        raise TargetError(f"target {target}: nothing is timed in these tests")

    monkeypatch.setattr("undense.backend.kernel_times.check_measurable", absent)


def _chain() -> ir.Model:
    weights = {"a": normal(N, N), "b": normal(N, 2 * N, seed=1), "c": normal(2 * N, N, seed=2)}
    return graph(
        f"""g (float[t,{N}] x) => (float[t,{N}] y) {{
            p = MatMul(x, a)  q = Relu(p)  r = MatMul(q, b)  s = Relu(r)  y = MatMul(s, c)
        }}""",
        **weights,
    )


def _expert() -> ir.Model:
    """An expert `e` that is given the rows of x of which `routed` is true."""
    return graph(
        f"""g (float[t,{N}] x, bool[t] routed) => (float[t,{N}] y) {{
            rows = Compress<axis=0>(x, routed)  own = MatMul(rows, e)
            axes = Constant<value_ints=[0]>()  sum = ReduceSum(own, axes)
            every = MatMul(x, w)  y = Add(every, sum)
        }}""",
        e=normal(N, N),
        w=normal(N, N, seed=1),
    )


def _data(model: ir.Model) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = [{"x": normal(32, N, seed=10 + index)} for index in range(8)]
    if len(model.graph.inputs) > 1:
        data = [{**sample, "routed": np.zeros(32, bool)} for sample in data]
    return data


def _compiled(model: ir.Model, output: Path, **options: Any) -> undense.runtime.session.Session:
    given: dict[str, Any] = {"target": "ort-cpu", "calibration_dataset": _data(model)}
    return undense.compile(model, output=output, **(given | options))


def _kinds(cache: Path) -> Counter[str]:
    return Counter(entry.kind for entry in Cache(cache).entries())


@pytest.mark.parametrize("target", ["ort-cpu", "llvm"])
@pytest.mark.parametrize("ignored", [[], ["b"]])
def test_a_replay_gives_the_bytes_of_the_plan_and_fits_nothing(
    tmp_path: Path, target: str, ignored: list[str]
) -> None:
    cache = tmp_path / "cache"
    first = _compiled(
        _chain(), tmp_path / "first", target=target, budget="size_ratio=0.5", cache=cache,
        ignored_scope=ignored,
    )  # fmt: skip
    assert {site["scheme"] for site in first.report["sites"]} != {"dense"}
    before = _kinds(cache)
    assert before["stats"] == 1
    plan = tmp_path / "first/plan.json"
    kept = _compiled(_chain(), tmp_path / "kept", target=target, plan=plan, cache=cache)
    assert _kinds(cache) == before
    fresh = _compiled(_chain(), tmp_path / "fresh", target=target, plan=plan, cache=False)
    for again in (kept, fresh):
        assert [site["reason"] for site in again.report["sites"]] == [
            site["reason"] for site in first.report["sites"]
        ]
        for name in ("model.onnx", "plan.json"):
            assert (again.path / name).read_bytes() == (first.path / name).read_bytes()


def test_a_replay_with_other_options_is_refused(tmp_path: Path) -> None:
    _compiled(_chain(), tmp_path / "first", scheme="int_codes", dtype="float16")
    plan = read_plan(tmp_path / "first/plan.json")
    assert plan.options == {
        "target": "ort-cpu", "dtype": "float16", "lossless": "merge_linears, absorb_scales",
    }  # fmt: skip
    for options, said in (
        ({}, "dtype differ: the plan was made with float16 and this run has none"),
        ({"dtype": "float16", "lossless": False}, "lossless differ: .* this run has none"),
        ({"dtype": "float16", "target": "llvm"}, "or take target out of the plan's options"),
        ({"dtype": "float16", "kernels": "tvm"}, "this run has ort-cpu kernels=tvm"),
        ({"dtype": "float16", "portable": True}, "this run has ort-cpu portable"),
    ):
        with pytest.raises(PlanError, match=said):
            _compiled(_chain(), tmp_path / "second", plan=plan, **options)


def test_the_reason_of_a_site_that_was_edited_is_true(tmp_path: Path) -> None:
    first = _compiled(_chain(), tmp_path / "first", budget="size_ratio=0.25")
    document = json.loads((tmp_path / "first/plan.json").read_text())
    by_name = {site["name"]: site for site in document["sites"]}
    was = by_name["a"]["scheme"]
    assert was != "dense"
    by_name["a"]["scheme"] = "dense"
    by_name["b"] |= {"scheme": "dense", "reason": "it is the second"}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    second = _compiled(_chain(), tmp_path / "second", plan=tmp_path / "plan.json")
    reasons = {site["name"]: site["reason"] for site in second.report["sites"]}
    assert reasons["a"] == f"as the plan says, which was made with {was}"
    assert reasons["b"] == "it is the second"
    assert reasons["c"] == {site["name"]: site["reason"] for site in first.report["sites"]}["c"]


def test_a_site_that_sees_no_rows_stays_dense_in_a_plan(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = _compiled(_expert(), tmp_path / "first", budget="size_ratio=0.8", cache=cache)
    found = {site["name"]: site for site in first.report["sites"]}
    assert found["e"]["scheme"] == "dense"
    assert found["e"]["reason"] == (
        "kept dense: no sample brings a row to its input 'rows'; give longer samples"
    )
    assert found["w"]["scheme"] != "dense"
    before = _kinds(cache)
    again = _compiled(
        _expert(), tmp_path / "again", plan=tmp_path / "first/plan.json", cache=cache
    )  # fmt: skip
    assert _kinds(cache) == before
    assert (again.path / "model.onnx").read_bytes() == (first.path / "model.onnx").read_bytes()


def test_a_site_that_is_asked_for_and_sees_no_rows_is_refused_until_it_is_ignored(
    tmp_path: Path,
) -> None:
    said = r"^e: no sample brings a row to its input 'rows'; .*, or keep the site dense$"
    rules = [{"match": "e", "scheme": "int_codes"}, {"match": "*", "scheme": "auto"}]
    with pytest.raises(CalibrationError, match=said):
        _compiled(_expert(), tmp_path / "model", scheme="int_codes")
    with pytest.raises(CalibrationError, match=said):
        _compiled(_expert(), tmp_path / "model", scheme=rules)
    for number, scheme in enumerate(("int_codes", "auto")):
        output = tmp_path / str(number)
        found = _compiled(_expert(), output, scheme=scheme, ignored_scope=["e"])
        reasons = {site["name"]: site["reason"] for site in found.report["sites"]}
        assert reasons["e"] == "kept dense as asked"
