"""`plan` from a model to plan.json, and the compile that carries it out."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense import cli
from undense.backend.kernel_times import Time, WholeRun, sites
from undense.passes.errors import MissingDependencyError, PlanError, SchemeError, TargetError
from undense.passes.options import rows, site_options
from undense.passes.plan import Plan, read_plan
from undense.passes.scheme import parse_scheme
from undense.passes.sites import find_sites
from undense.planning import Planner
from undense.runtime.plan_report import print_plan

N = 128
SLOW = "int_codes{bits=4,activations=int8}"


def _model():
    weights = {"up": normal(N, 2 * N), "down": normal(2 * N, N, seed=1), "bias": normal(N, seed=2)}
    return graph(
        f"""g (float[batch,t,{N}] x) => (float[batch,t,{N}] y) {{
            a = MatMul(x, up)  r = Relu(a)  b = MatMul(r, down)  c = Add(b, bias)  y = Add(c, x)
        }}""",
        **weights,
    )


def _data(count=8):
    # Correlated channels, as activations are.
    mixing = normal(N, N, seed=3) * np.geomspace(1, 0.01, N, dtype=np.float32)[:, None]
    return [(normal(2, 16, N, seed=10 + number) @ mixing,) for number in range(count)]


@pytest.fixture
def quick_times(monkeypatch):
    """Times as the bytes of a form, but one that is slower than dense; nothing is run."""

    def times(layers, target, form, **options):
        del target, form, options
        found = {}
        for layer, counts in layers.items():
            bits = 32.0
            if layer.scheme == SLOW:
                bits = 40.0
            elif layer.scheme != "dense":
                structure = parse_scheme(layer.scheme)
                shape = layer.out_features, layer.in_features
                bits = structure.bits(*shape) / (shape[0] * shape[1])
            found[layer] = {count: Time(bits * count, bits, bits, 5) for count in counts}
        return found

    monkeypatch.setattr(sites, "kernel_times", times)
    free = Time(0.0, 0.0, 0.0, 5)
    monkeypatch.setattr(WholeRun, "times", lambda *_: {1: free, 32: free})


def _plan(budget=None, **options):
    return undense.plan(
        _model(), calibration_dataset=_data(), target="ort-cpu", budget=budget, **options
    )


def test_a_plan_keeps_its_budget_and_says_what_it_predicts(quick_times):
    planned = _plan("size_ratio=0.25")
    report = planned.report
    assert report["size_ratio"] <= 0.25
    assert report["effective_bits"] <= 8.1
    assert 0 < report["distortion"] < 0.1
    assert report["additivity"] == pytest.approx(1, abs=0.3)
    assert report["batches"] == [1, 32]
    assert {choice.name for choice in planned.plan.sites} == {"up", "down"}
    for choice in planned.plan.sites:
        assert choice.reason.startswith("auto: ")
        assert len(report["runners_up"][choice.name]) >= 3
    sizes = [point["size_ratio"] for point in report["pareto"]]
    losses = [point["distortion"] for point in report["pareto"]]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    assert 0.5 < report["prediction"]["median_ratio"] < 2
    json.dumps(report, allow_nan=False)


def test_the_report_of_a_plan_has_what_each_site_costs(quick_times, capsys):
    planned = _plan("size_ratio=0.25")
    report = planned.report
    assert report["distortion_measure"] == "relative_mse"
    assert report["distortions"]["measured"] >= 2
    assert report["distortions"]["predicted"] >= 2
    for choice, found in zip(planned.plan.sites, report["sites"], strict=True):
        assert (choice.name, choice.scheme) == (found["name"], found["scheme"])
        assert found["bytes"]["dense"] == 4 * choice.in_features * choice.out_features
        assert set(found["milliseconds"]) == {"1", "32"}
        assert found["relative_error"] == planned.results[choice.name].relative_error
    after = sum(found["bytes"]["chosen"] for found in report["sites"])
    bits = 8 * after / sum(found["bytes"]["dense"] / 4 for found in report["sites"])
    assert report["effective_bits"] == pytest.approx(bits)
    print_plan(report)
    assert f"bytes of weights  {report['size_ratio']:.1%} of dense" in capsys.readouterr().out


def test_without_budget_the_default_drop_is_kept_for_the_least_cost(quick_times):
    report = _plan().report
    assert report["budget"] == "max_drop=0.01"
    assert report["distortion"] <= 0.01
    assert report["size_ratio"] < 0.3


def test_what_is_slower_is_not_chosen_unless_the_size_alone_counts(quick_times):
    by_time = _plan("latency_ratio=0.9")
    assert SLOW not in {choice.scheme for choice in by_time.plan.sites}
    refused = [
        row["reason"]
        for found in by_time.report["runners_up"].values()
        for row in found
        if row["scheme"] == SLOW
    ]
    assert refused == ["would take 1.25× the time at batch 1"] * len(refused)
    assert refused


def test_the_same_plan_comes_out_again_and_from_the_cache(quick_times, tmp_path):
    first = _plan("size_ratio=0.2", cache=tmp_path)
    again = _plan("size_ratio=0.2", cache=tmp_path)
    uncached = _plan("size_ratio=0.2", cache=False)
    assert first.plan == again.plan == uncached.plan
    assert first.report == again.report == uncached.report


def test_a_point_of_the_table_can_be_taken(quick_times):
    table = _plan().report["pareto"]
    report = _plan(point=2).report
    assert report["pareto"] == table
    assert {name: report[name] for name in table[1]} == table[1]
    with pytest.raises(PlanError, match=f"point 9: this model has points 1 to {len(table)}"):
        _plan(point=9)


def test_sites_with_a_scheme_of_their_own_keep_it(quick_times):
    rules = [{"match": "up", "scheme": "low_rank{rank=16}"}, {"match": "*", "scheme": "auto"}]
    planned = _plan("size_ratio=0.25", scheme=rules)
    found = {choice.name: choice for choice in planned.plan.sites}
    assert found["up"].scheme == "low_rank{rank=16}"
    assert found["up"].reason == "asked for"
    assert found["down"].scheme != "dense"


def test_a_site_that_cannot_have_its_scheme_says_so_in_a_plan_too(quick_times):
    rules = [{"match": "up", "scheme": "low_rank{rank=120}"}, {"match": "*", "scheme": "auto"}]
    planned = _plan("size_ratio=0.8", scheme=rules)
    reasons = {choice.name: choice.reason for choice in planned.plan.sites}
    assert "is not smaller" in reasons["up"]
    assert reasons["down"].startswith("auto: ")


def test_without_budget_a_drop_is_allowed_beside_what_named_schemes_lose(quick_times):
    rules = [{"match": "up", "scheme": "low_rank{rank=1}"}, {"match": "*", "scheme": "auto"}]
    report = _plan(scheme=rules).report
    assert report["distortion"] > 0.01
    found = {site["name"]: site for site in report["sites"]}
    assert found["down"]["scheme"] != "dense"
    with pytest.raises(PlanError, match=r"max_drop=0\.01 cannot be kept"):
        _plan("max_drop=0.01", scheme=rules)


def test_what_named_schemes_lose_beside_the_default_drop_is_told(quick_times):
    rules = [
        {"match": "up", "scheme": "trit_planes{planes=1}"}, {"match": "*", "scheme": "auto"}
    ]  # fmt: skip
    report = _plan(scheme=rules).report
    (note,) = (note for note in report["notes"] if note.startswith("max_drop"))
    assert note.startswith("max_drop=0.01 bounds what auto adds to the distortion of the outputs")
    (other,) = (note for note in _plan("max_drop=0.05").report["notes"] if "stood in" in note)
    assert other.startswith("max_drop=0.05 bounds the distortion of the outputs")


def test_a_point_is_taken_where_the_default_drop_cannot_be_kept(quick_times, monkeypatch):
    def impossible(*_):
        raise PlanError("budget: max_drop=0.01 cannot be kept")

    monkeypatch.setattr("undense.planning.settle", impossible)
    report = _plan(point=2).report
    assert report["size_ratio"] == report["pareto"][1]["size_ratio"]
    with pytest.raises(PlanError):
        _plan()


def test_a_model_without_linears_says_so():
    model = graph("g (float[t,4] x) => (float[t,4] y) { y = Relu(x) }")
    data = [(normal(3, 4, seed=number),) for number in range(4)]
    with pytest.raises(SchemeError, match="has no linear that can be replaced"):
        undense.plan(model, calibration_dataset=data, target="ort-cpu", budget="size_ratio=0.5")


def test_what_schemes_by_name_cost_is_predicted(quick_times):
    planned = _plan(scheme="int_codes{bits=4}")
    assert {choice.scheme for choice in planned.plan.sites} == {SLOW}
    assert planned.report["size_ratio"] == pytest.approx(4.5 / 32, rel=0.1)
    assert planned.report["latency_ratio"]["1"] == pytest.approx(1.25)
    assert 0 < planned.report["distortion"] < 0.1


def test_an_impossible_budget_names_the_limit_and_what_can_be_had(quick_times):
    with pytest.raises(PlanError, match=r"size_ratio=0.01 cannot be kept: the least .* is 0\.\d+"):
        _plan("size_ratio=0.01")
    with pytest.raises(PlanError, match="max_drop=1e-09"):
        _plan("size_ratio=0.2,max_drop=1e-9")


def test_budgets_that_nothing_can_be_planned_for_are_refused():
    with pytest.raises(SchemeError, match="every site has a scheme by name"):
        _plan("size_ratio=0.5", scheme="low_rank")
    with pytest.raises(SchemeError, match="measured on calibration data"):
        undense.compile(_model(), target="ort-cpu", budget="size_ratio=0.5")


@pytest.mark.parametrize("kind", [TargetError, MissingDependencyError])
def test_a_target_that_is_not_here_is_planned_for_size_and_never_for_latency(monkeypatch, kind):
    def absent(target):
        raise kind(f"target {target}: latency cannot be measured on this machine: no GPU")

    monkeypatch.setattr("undense.backend.kernel_times.check_measurable", absent)
    report = _plan("size_ratio=0.25").report
    assert report["batches"] == []
    assert "no GPU" in report["notes"][0]
    monkeypatch.setattr(Planner, "_fits", None)  # it is refused before anything is fitted
    with pytest.raises(kind, match="latency cannot be measured"):
        _plan("latency_ratio=0.5")


def test_compile_takes_what_plan_returned(quick_times):
    planned = _plan("size_ratio=0.25")
    module = undense.compile(_model(), calibration_dataset=_data(), target="ort-cpu", plan=planned)
    chosen = {choice.name: choice.scheme for choice in planned.plan.sites}
    assert {site["name"]: site["scheme"] for site in module.report["sites"]} == chosen


def test_compile_carries_out_what_plan_says(quick_times, tmp_path):
    planned = _plan("size_ratio=0.25")
    path = tmp_path / "plan.json"
    planned.plan.save(path)
    assert read_plan(path) == planned.plan
    replayed = undense.compile(_model(), calibration_dataset=_data(), target="ort-cpu", plan=path)
    own = undense.compile(
        _model(), calibration_dataset=_data(), target="ort-cpu", budget="size_ratio=0.25"
    )
    assert replayed.report["planning"] is None
    assert own.report["planning"] == planned.report
    x = _data()[0][0]
    np.testing.assert_array_equal(own(x), replayed(x))
    # What is predicted is what is stored, but for the graph itself.
    found = own.report["bytes"]["after"] / own.report["bytes"]["before"]
    assert found == pytest.approx(planned.report["size_ratio"], rel=0.02)


def test_the_command_line_writes_a_plan_that_compile_takes(quick_times, tmp_path, capsys):
    ir.save(_model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **{f"{number}/x": x for number, (x,) in enumerate(_data())})
    common = [
        str(tmp_path / "model.onnx"), "--target", "ort-cpu", "--calib", str(tmp_path / "calib.npz"),
        "--quiet",
    ]  # fmt: skip
    plan = tmp_path / "plan.json"
    wanted = ["plan", *common, "--budget", "size_ratio=0.25", "-o", str(plan), "--json"]
    assert cli.main(wanted) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["size_ratio"] <= 0.25
    assert isinstance(read_plan(plan), Plan)
    assert [path.name for path in tmp_path.glob(".plan*")] == []
    artifact = tmp_path / "out.undense"
    assert cli.main(["compile", *common, "--plan", str(plan), "-o", str(artifact)]) == 0
    assert undense.load(artifact).report["sites"][0]["scheme"] != "dense"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "size=1"], "unknown key 'size'"),
        (["--batch", "0"], "give whole numbers of 1 or more"),
        (["--batch", "one"], "give numbers with commas"),
        (["--plan-time", "-1"], "give seconds, 0 or more"),
        (["--point", "0"], "points are counted from 1"),
        ([], "measured on calibration data"),
        (["-o", "/nowhere/plan.json"], "no file can be written there"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options, said, tmp_path, capsys):
    ir.save(_model(), tmp_path / "model.onnx")
    assert cli.main(["plan", str(tmp_path / "model.onnx"), *options]) == 2
    sentence = capsys.readouterr().err
    assert said in sentence
    assert sentence.count("\n") == 1


def test_rows_are_the_batch_times_the_fixed_dimensions():
    uses = {site.name: site.uses[0] for site in find_sites(_model())[0]}
    assert rows(uses["up"], 7) == 7
    fixed = graph(
        f"g (float[4,6,{N}] x) => (float[4,6,{N}] y) {{ y = MatMul(x, w) }}", w=normal(N, N)
    )
    image = graph(
        "g (float[n,64,5,3] x) => (float[n,32,5,3] y) { y = Conv(x, w) }", w=normal(32, 64, 1, 1)
    )
    assert rows(find_sites(fixed)[0][0].uses[0], 7) == 24
    assert rows(find_sites(image)[0][0].uses[0], 7) == 105


def test_rows_follow_the_lengths_of_the_dimensions_that_an_input_has():
    """A head behind the first token has the batch alone."""
    text = f"""g (float[batch,seq,{N}] x) => (float[batch,{N}] y) {{
        zero = Constant<value_int=0>()  first = Gather<axis=1>(x, zero)
        a = Relu(first)  y = MatMul(a, w)
    }}"""
    model = graph(text, w=normal(N, N))
    (use,) = find_sites(model)[0][0].uses
    use.x.shape = ir.Shape(["batch", N])
    assert rows(use, 32) == 32
    assert rows(use, 32, {"batch": 1, "seq": 32}) == 1
    assert rows(use, 32, {"seq": 32}) == 32


def test_embeddings_are_offered_what_gathers():
    model = graph(f"g (int64[t] i) => (float[t,{N}] y) {{ y = Gather(w, i) }}", w=normal(300, N))
    options = site_options(find_sites(model)[0][0])
    assert options
    assert all(option.gathers for option in options)


def test_the_portable_form_is_offered_no_factors_in_codes():
    site = find_sites(_model())[0][0]
    whole, portable = ({str(o) for o in site_options(site, portable=p)} for p in (False, True))
    assert portable < whole
    assert all("factor_bits=8" in option for option in whole - portable)


def test_the_portable_form_is_offered_what_it_can_gather_as_its_engine_runs_it():
    model = graph(f"g (int64[t] i) => (float[t,{N}] y) {{ y = Gather(w, i) }}", w=normal(300, N))
    site = find_sites(model)[0][0]
    options = site_options(site, portable=True)
    assert {option.bits_ for option in options} == {8}
    assert {option.bits_ for option in site_options(site)} == {8, 4, 3}


@pytest.mark.slow
def test_kernels_are_timed_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [parse_scheme(text) for text in ("int_codes{bits=8,activations=float}", "low_rank")]
    monkeypatch.setattr(
        "undense.passes.options.site_options",
        lambda site, **_: [s.resolve(site.out_features, site.in_features, site="") for s in few],
    )
    planned = undense.plan(
        _model(), calibration_dataset=_data(), target="llvm", budget="max_drop=0.05", batch=[4]
    )
    assert planned.report["batches"] == [4]
    (found,) = {tuple(site["milliseconds"]) for site in planned.report["sites"]}
    assert found == ("4",)
    # A machine with other work may tell no layer from a call that does nothing.
    assert 0 <= planned.report["latency_ratio"]["4"] < math.inf


@pytest.mark.parametrize("target", ["llvm", "ort-cpu", "ort-cpu with tvm"])
@pytest.mark.parametrize(
    "scheme", ["int_codes{bits=8}", "trit_planes{planes=3}", "low_rank{rank=8,factor_bits=8}"]
)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_predicted_bytes_are_those_that_are_written(quick_times, scheme, target, dtype):
    # Of 100 inputs no group is whole, and what ONNX Runtime fills TVM does not store.
    model = graph(
        "g (float[t,100] x) => (float[t,64] y) { z = MatMul(x, w)  y = Add(z, b) }",
        w=normal(100, 64),
        b=normal(64),
    )
    data = [(normal(16, 100, seed=number),) for number in range(8)]
    target, _, kernels = target.partition(" with ")
    options = {"calibration_dataset": data, "scheme": scheme, "target": target, "dtype": dtype}
    options["kernels"] = kernels or None
    predicted = undense.plan(model, **options).report["size_ratio"]
    found = undense.compile(model, **options).report["bytes"]
    assert found["after"] == pytest.approx(predicted * found["before"], rel=1e-12)
