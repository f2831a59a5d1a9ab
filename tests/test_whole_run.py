"""The dense model as a whole: timed once, and again beside its artifact."""

from __future__ import annotations

import numpy as np
import pytest
import undense
from graphs import graph, normal
from undense.backend.kernel_times import Layer, Time, WholeRun, whole_run
from undense.backend.kernel_times.reference import Reference
from undense.backend.kernel_times.sites import SiteTimes
from undense.backend.target import Target
from undense.frontend.resize import FIXED_SHAPES
from undense.passes.cache import Cache
from undense.passes.errors import InputError
from undense.runtime.report import print_report

N = 64
ORT = Target.parse("ort-cpu")
FEEDS = {rows: {"x": normal(rows, N)} for rows in (1, 4)}


def _model(seed: int = 0):
    return graph(
        f"g (float[t,{N}] x) => (float[t,{N}] y) {{ y = MatMul(x, w) }}", w=normal(N, N, seed=seed)
    )


@pytest.fixture
def built(monkeypatch):
    """How often a model was compiled."""
    calls, real = [], whole_run.built
    monkeypatch.setattr(whole_run, "built", lambda *args: calls.append(args) or real(*args))
    return calls


def test_a_run_is_timed_once_for_each_model_and_shape(built, tmp_path):
    cache = Cache(tmp_path)
    times = WholeRun(_model(), ORT, FEEDS).times({}, cache)
    assert set(times) == {1, 4}
    assert all(0 < time.p10_ms <= time.median_ms <= time.p90_ms for time in times.values())
    assert WholeRun(_model(), ORT, FEEDS).times({}, cache) == times
    assert len(built) == 1
    assert WholeRun(_model(), ORT, {1: FEEDS[1]}).times({}, cache) == {1: times[1]}
    assert len(built) == 1
    assert WholeRun(_model(1), ORT, FEEDS).times({}, cache) != times
    more = WholeRun(_model(), ORT, {**FEEDS, 2: {"x": normal(2, N)}}).times({}, cache)
    assert {rows: more[rows] for rows in (1, 4)} == times
    assert list(more) == [1, 2, 4]
    assert len(built) == 3


def test_a_run_has_the_pace_at_which_a_dense_layer_was_timed(tmp_path):
    """A machine on which that took a hundred times as long would take so long for the run too."""
    layer, cache = Layer(8 * N, 8 * N, "dense"), Cache(tmp_path)  # a small one cannot be told

    def run(milliseconds: float) -> Time:
        reference = Reference(layer, 4, 1 << 20, Time(milliseconds, 0.0, 0.0, 5))
        return WholeRun(_model(), ORT, {4: FEEDS[4]}).times({4: reference}, cache)[4]

    usual = WholeRun(_model(), ORT, {4: FEEDS[4]}).times({}, cache)[4]
    slow, slower = run(1.0), run(100.0)
    assert slow.median_ms > usual.median_ms
    assert 10 < slower.median_ms / slow.median_ms < 1000
    assert run(1.0) == slow  # kept apart from that of another pace


def test_without_rows_that_can_be_run_nothing_is_compiled(built):
    assert WholeRun(_model(), ORT, {}).times({}, None) == {}
    assert not built


def test_an_artifact_is_timed_beside_the_dense_model_that_is_compiled_once(built, tmp_path):
    whole = WholeRun(_model(), ORT, FEEDS)
    whole.times({}, None)
    module = undense.compile(_model(), target="ort-cpu", scheme="dense", output=tmp_path / "out")
    found, notes = whole.beside(module)
    assert len(built) == 1
    assert set(found) == set(FEEDS)
    assert notes == []
    for latency in found.values():
        assert latency.ratio == latency.compiled.median_ms / latency.dense.median_ms
        assert latency.report()["compiled"]["median_ms"] > 0


def test_the_folder_goes_with_the_object(built):
    whole = WholeRun(_model(), ORT, FEEDS)
    whole.times({}, None)
    folder = built[0][2].parent
    assert folder.is_dir()
    del whole
    built.clear()
    assert not folder.exists()


def test_the_report_of_a_compile_has_predicted_and_measured_times(capsys):
    data = [{"x": np.random.default_rng(n).standard_normal((16, N), np.float32)} for n in range(4)]
    module = undense.compile(
        _model(), target="ort-cpu", calibration_dataset=data, budget={"size_ratio": 0.5}, batch=[4]
    )
    report = module.report
    assert set(report["latency"]) == set(report["planning"]["latency_ratio"]) == {"4"}
    assert report["latency"]["4"]["ratio"] > 0
    print_report(report)
    assert f"predicted, {report['latency']['4']['ratio']:.2f}× measured" in capsys.readouterr().out
    replayed = undense.compile(
        _model(), target="ort-cpu", calibration_dataset=data, plan=module.path / "plan.json"
    )
    assert replayed.report["latency"] is None  # so that a plan always gives the same bytes
    named = undense.compile(_model(), target="ort-cpu", scheme="int_codes").report
    assert named["latency"] is None


def test_a_run_that_fails_is_told_and_left_out():
    table = graph(
        f"g (float[t,{N}] x) => (float[t,{N}] y) {{ z = MatMul(x, w)  y = Add(z, p) }}",
        w=normal(N, N),
        p=normal(4, N),
    )
    whole = WholeRun(table, ORT, {**FEEDS, 6: {"x": normal(6, N)}})
    spent = SiteTimes({"w": {"dense": {1: 0.0, 4: 1e9, 6: 0.0}}}, {})
    rest, (_, note) = whole.beyond(spent, [1, 4, 6], None)
    assert set(rest) == {1, 4}
    assert rest[1] > 0
    assert rest[4] == 0
    assert note.startswith("no run of batch 6 was timed (")
    assert note.endswith("its latency ratio is that of the linears alone")
    assert set(whole.times({}, None)) == {1, 4}


def test_linears_that_take_longer_alone_than_a_whole_run_are_told(monkeypatch):
    runs = {1: Time(2.0, 2.0, 2.0, 5), 4: Time(2.0, 2.0, 2.0, 5)}
    monkeypatch.setattr(WholeRun, "times", lambda *_: runs)
    spent = SiteTimes({"w": {"dense": {1: 2.03, 4: 2.1}}}, {})
    rest, notes = WholeRun(_model(), ORT, FEEDS).beyond(spent, [1, 4], None)
    assert rest == {1: 0.0, 4: 0.0}
    assert notes == [
        "at batch 4 the linears timed alone take 2.1 ms and a whole run 2 ms: its latency ratio is "
        "that of the linears alone"
    ]


def test_a_batch_that_the_artifact_refuses_is_told_and_costs_no_compile(monkeypatch, tmp_path):
    """The dense stand-in takes what the bounds of an artifact do not allow."""
    data = [{"x": normal(16, N, seed=seed)} for seed in range(4)]
    real = whole_run.finished

    def refuses(session, feed):
        if session.path.name == "artifact" and len(feed["x"]) == 4:
            raise InputError("x: dimension t is 4, which must be from 1 to 2")
        return real(session, feed)

    monkeypatch.setattr(whole_run, "finished", refuses)
    module = undense.compile(
        _model(),
        target="ort-cpu",
        calibration_dataset=data,
        budget={"size_ratio": 0.5},
        batch=[1, 4],
        output=tmp_path / "out",
    )
    assert set(module.report["latency"]) == {"1"}
    assert set(module.report["planning"]["latency_ratio"]) == {"1", "4"}
    notes = [note for note in module.report["notes"] if "batch 4" in note]
    assert notes == [
        "no run of batch 4 was timed beside the dense model (x: dimension t is 4, which must be "
        "from 1 to 2): its time is predicted alone"
    ]
    print_report(module.report)


def test_a_model_of_fixed_shapes_is_timed_as_one_call():
    model = graph(f"g (float[8,{N}] x) => (float[8,{N}] y) {{ y = MatMul(x, w) }}", w=normal(N, N))
    data = [{"x": normal(8, N, seed=seed)} for seed in range(4)]
    report = undense.plan(model, calibration_dataset=data, target="ort-cpu", batch=[1, 32]).report
    assert report["batches"] == [1]
    assert set(report["latency_ratio"]) == {"1"}
    assert report["notes"][0] == FIXED_SHAPES
    moving = undense.plan(_model(), calibration_dataset=data, target="ort-cpu", batch=[1, 32])
    assert moving.report["batches"] == [1, 32]
    assert FIXED_SHAPES not in moving.report["notes"]
