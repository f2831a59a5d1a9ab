"""A compile held to a metric: layers are given back until it holds, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.cli import main
from undense.frontend.dense import run_dense
from undense.passes.errors import InputError, PlanError, SchemeError, TargetError, ValidationError
from undense.passes.plan import read_plan
from undense.runtime.session import Session
from undense.runtime.unloaded import Unloaded
from undense.runtime.verify import verify

COARSE = "trit_planes{planes=1,group=32}"
N = 64


def _model():
    """Two layers that hardly matter, and a head that decides."""
    return graph(
        f"""g (float[batch,{N}] x) => (float[batch,{N}] y) {{
            a = MatMul(x, first)  b = Add(x, a)  c = MatMul(b, second)  d = Add(b, c)
            y = MatMul(d, head)
        }}""",
        first=0.0003 * normal(N, N, seed=1),
        second=0.0003 * normal(N, N, seed=2),
        head=normal(N, N, seed=3),
    )


def _inputs(count=6):
    return [normal(32, N, seed=20 + number) for number in range(count)]


def _dataset():
    """Inputs, and the classes that the dense model gives them."""
    dense = run_dense(_model(), ({"x": x} for x in _inputs()))
    pairs = zip(_inputs(), dense, strict=True)
    return [{"x": x, "labels": found["y"].argmax(-1)} for x, found in pairs]


def accuracy(model, dataset):
    """Of the classes."""
    return np.mean([(model(s["x"]).argmax(-1) == s["labels"]).mean() for s in dataset])


def _compiled(**options):
    given = {
        "target": "ort-cpu",
        "calibration_dataset": _inputs(),
        "validation_fn": accuracy,
        "validation_dataset": _dataset(),
    }
    return undense.compile(_model(), **(given | options))


def _schemes(module):
    return {row["name"]: row["scheme"].partition("{")[0] for row in module.report["sites"]}


@pytest.mark.parametrize("target", ["ort-cpu", "llvm"])
def test_the_worst_layers_are_given_back_until_the_metric_holds(target: str, tmp_path: Path):
    module = _compiled(
        target=target, scheme=COARSE, budget={"max_drop": 0.02}, output=tmp_path / "m"
    )
    assert _schemes(module) == {"first": "trit_planes", "second": "trit_planes", "head": "dense"}
    found = module.report["validation"]
    assert found["dense"] == 1.0
    assert found["compiled"] == accuracy(module, _dataset())
    assert found["drop"] == 1.0 - found["compiled"] <= 0.02
    (given_back,) = found["given_back"]
    assert given_back["site"] == "head"
    assert given_back["scheme"].startswith("trit_planes{planes=1,group=32")
    assert given_back["drop_before"] > 0.02
    # Dense, all three, two, and the artifact.
    assert (found["evaluations"], found["max_drop"], found["drop_type"]) == (4, 0.02, "absolute")
    (reason,) = (row["reason"] for row in module.report["sites"] if row["name"] == "head")
    assert reason.startswith("given back: as trit_planes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert undense.load(tmp_path / "m").report == module.report


def test_what_the_engine_loses_beyond_the_weights_costs_further_layers(tmp_path: Path):
    def engine_loses(model, dataset):
        """As `accuracy`, and a twentieth for each replaced layer that is really run."""
        lost = 0.0
        if isinstance(model, Session):
            lost = 0.05 * sum(row["scheme"] != "dense" for row in model.report["sites"])
        return accuracy(model, dataset) - lost

    module = _compiled(
        scheme=COARSE, budget={"max_drop": 0.07}, validation_fn=engine_loses,
        output=tmp_path / "m",
    )  # fmt: skip
    found = module.report["validation"]
    assert sorted(_schemes(module).values()) == ["dense", "dense", "trit_planes"]
    assert found["drop"] == pytest.approx(0.05, abs=0.02)
    assert found["given_back"][0]["site"] == "head"
    assert found["given_back"][1]["drop_before"] == pytest.approx(0.1, abs=0.02)
    assert verify(undense.load(tmp_path / "m")).holds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_without_a_drop_nothing_is_compared_or_given_back(monkeypatch):
    monkeypatch.setattr("undense.frontend.distortion.distortion", pytest.fail)
    module = _compiled(scheme="int_codes{bits=8}", budget={"max_drop": 0.1})
    assert _schemes(module)["head"] == "int_codes"
    assert module.report["validation"]["given_back"] == []


def test_a_data_free_compile_is_held_to_the_metric_too():
    module = _compiled(scheme=COARSE, calibration_dataset=None, budget={"max_drop": 0.02})
    assert _schemes(module)["head"] == "dense"


def test_a_plan_by_measurement_is_held_to_the_metric_and_replayed_without_it(tmp_path: Path):
    module = _compiled(
        budget="max_drop=0.005", batch=[1], plan_time=20, ignored_scope=["second"],
        output=tmp_path / "one",
    )  # fmt: skip
    found = module.report["validation"]
    assert found["drop"] <= 0.005
    again = undense.compile(
        _model(), target="ort-cpu", calibration_dataset=_inputs(),
        plan=tmp_path / "one/plan.json", output=tmp_path / "two",
    )  # fmt: skip
    names = ("model.onnx", "plan.json")
    assert all(
        (module.path / name).read_bytes() == (again.path / name).read_bytes() for name in names
    )
    assert again.report["planning"] is None


def test_what_is_given_back_must_leave_the_limits_on_costs():
    with pytest.raises(
        PlanError,
        match=r"max_drop=0.001 of the metric cannot be kept together with size_ratio=0.15: "
        r"within that the metric drops by 0\.\d+, and with the \d worst layers dense size_ratio is",
    ):
        _compiled(budget={"size_ratio": 0.15, "max_drop": 0.001}, batch=[1])


def test_within_limits_on_costs_the_report_counts_what_was_given_back():
    module = _compiled(
        scheme=[{"match": "head", "scheme": COARSE}, {"match": "*", "scheme": "auto"}],
        budget={"size_ratio": 0.7, "max_drop": 0.02}, batch=[1], plan_time=20,
    )  # fmt: skip
    planning = module.report["planning"]
    assert [row["site"] for row in module.report["validation"]["given_back"]] == ["head"]
    assert read_plan(module.path / "plan.json").sites[-1].scheme == "dense"
    assert 1 / 3 < planning["size_ratio"] <= 0.7
    assert planning["runners_up"]["head"][0]["scheme"].startswith("trit_planes")
    (head,) = (row for row in planning["sites"] if row["name"] == "head")
    assert (head["scheme"], head["distortion"]) == ("dense", 0.0)
    assert "given back" in head["reason"]


def test_without_a_function_the_report_says_what_the_drop_is_of():
    module = _compiled(
        validation_fn=None, validation_dataset=None, budget={"max_drop": 0.3}, batch=[1]
    )
    assert any("stood in for a metric" in note for note in module.report["planning"]["notes"])
    assert module.report["validation"] is None


def test_models_take_and_give_the_types_of_the_artifact():
    seen = set()

    def metric(model, dataset):
        (info,) = model.inputs
        found = model.run({"x": dataset[0].astype(info.dtype)})["y"]
        seen.add((info.dtype, found.dtype.name, model.outputs[0].dtype))
        with pytest.raises(InputError, match="expected dtype float16"):
            model(dataset[0])
        return 1.0

    _compiled(scheme="dense", dtype="float16", validation_fn=metric, validation_dataset=_inputs())
    assert seen == {("float16", "float16", "float16")}


def test_a_conversion_that_alone_costs_too_much_is_named():
    def exactness(model, dataset):
        x = dataset[0].astype(model.inputs[0].dtype)
        return -float(np.abs(model(x).astype(np.float64) - dataset[1]).max())

    x = _inputs()[0]
    dense = undense.compile(_model(), target="ort-cpu", scheme="dense")(x)
    with pytest.raises(PlanError, match=r"with every layer dense.*float16; raise it, or leave"):
        _compiled(
            scheme=COARSE, dtype="float16", budget={"max_drop": 1e-7},
            validation_fn=exactness, validation_dataset=[x, dense],
        )  # fmt: skip


def test_a_metric_that_differs_from_call_to_call_is_not_delivered():
    falling = iter(range(1000, 0, -1))
    with pytest.raises(PlanError, match=r"with every layer dense .* not the same again"):
        _compiled(scheme=COARSE, validation_fn=lambda model, dataset: float(next(falling)))


def test_where_the_device_is_not_here_the_exchanged_model_stands_in(monkeypatch):
    def elsewhere(path):
        return Unloaded(undense.load(path).artifact, TargetError("no GPU"))

    monkeypatch.setattr("undense.candidate.load_if_possible", elsewhere)
    module = _compiled(scheme=COARSE, budget={"max_drop": 0.02})
    found = module.report["validation"]
    assert "compiled" not in found
    assert found["drop"] == pytest.approx(1.0 - found["predicted"])
    assert [row["site"] for row in found["given_back"]] == ["head"]
    assert any("stood in for ort-cpu in the validation" in note for note in module.report["notes"])


def _raises(model, dataset):
    raise RuntimeError("no such label")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raises, "_raises: raised RuntimeError for the dense model: no such label"),
        (lambda model, dataset: float("nan"), "gave nan for the dense model"),
        (lambda model, dataset: None, "gave None for"),
        (lambda model, dataset: "0.9", "gave '0.9' for"),
        (lambda model, dataset: 10**400, "gave 1000"),
        (lambda model, dataset: sys.exit(0), "raised SystemExit for the dense model: 0"),
        (lambda model, dataset: (0.9, []), r"gave \(0.9, \[\]\) for"),
        (lambda model, dataset: model(x=1), "raised InputError for the dense model: x: expected"),
    ],
)
def test_a_function_without_a_metric_is_one_sentence(function, said, monkeypatch):
    monkeypatch.setattr("undense.job.Job.fit", lambda *_: pytest.fail("this is too late"))
    with pytest.raises(ValidationError, match=said) as info:
        _compiled(scheme=COARSE, validation_fn=function)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation_fn": None}, "there is data and no function"),
        ({"validation_dataset": None}, "there is no data for it"),
        ({"validation_dataset": iter([1])}, "can be read only once"),
        ({"validation_fn": "accuracy"}, "'accuracy' cannot be called"),
        ({"drop_type": "percent"}, "a drop of type 'percent' is not known"),
        (
            {"validation_fn": None, "validation_dataset": None, "drop_type": "relative"},
            "there is no function for it",
        ),
        ({"budget": {"size_ratio": 0.5}}, "does not say how far the metric may drop"),
        ({"scheme": COARSE, "budget": "size_ratio=0.5,max_drop=0.1"}, "nothing is left to choose"),
        ({"plan": "plan.json"}, "leave it out, or the validation function"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(SchemeError, match=said):
        _compiled(**options)


FUNCTION = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np

@dataclass
class Counted:
    right: float

def accuracy(model, samples):
    labels = [s.pop("labels") for s in samples]
    right = [(model(s["x"]).argmax(-1) == l).mean() for s, l in zip(samples, labels)]
    return Counted(np.mean(right)).right

limit = 3
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ir.save(_model(), tmp_path / "model.onnx")
    arrays = {
        f"{number}/{name}": array
        for number, sample in enumerate(_dataset())
        for name, array in sample.items()
    }
    np.savez(tmp_path / "data.npz", **arrays)
    np.savez(tmp_path / "empty.npz")
    (tmp_path / "metric.py").write_text(FUNCTION)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "ends.py").write_text("import sys; sys.exit(0)")
    return tmp_path


def test_the_command_line_takes_a_function_and_data(files: Path, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert main([
        "compile", "model.onnx", "-o", "out", "--target", "ort-cpu", "--scheme", COARSE,
        "--budget", "max_drop=0.02", "--drop-type", "relative",
        "--validation", "metric.py:accuracy", "--validation-data", "data.npz",
    ]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "metric accuracy: 1 dense, " in shown
    assert "given back to dense for it: head\n" in shown
    found = json.loads(Path("out/report.json").read_text())["validation"]
    assert [row["site"] for row in found["given_back"]] == ["head"]
    assert (found["function"], found["drop_type"]) == ("accuracy", "relative")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--validation", "metric.py"], "not of the form FILE.py:function"),
        (["--validation", "missing.py:accuracy"], "missing.py: there is no such file"),
        (["--validation", "metric.py:precision"], "metric.py: has no function 'precision'"),
        (["--validation", "metric.py:limit"], "metric.py: has no function 'limit'"),
        (["--validation", "broken.py:f"], "broken.py: raised ModuleNotFoundError while it was"),
        (["--validation", "metric.py:accuracy"], "there is no data for it"),
        (["--validation", "ends.py:f"], "ends.py: raised SystemExit while it was loaded"),
        (["--validation-data", "data.npz"], "there is data and no function"),
        (["--validation-data", "missing.npz"], "missing.npz: there is no such file"),
        (["--validation-data", "metric.py"], "metric.py: not an .npz"),
        (["--validation-data", "empty.npz"], "empty.npz: holds no arrays"),
        (["--drop-type", "percent"], "'percent' is not known"),
    ],
)
def test_wrong_options_of_the_command_line_end_before_the_model_is_loaded(
    options, said, files: Path, capsys, monkeypatch
):
    monkeypatch.setattr("undense.frontend.load.load", lambda *_: pytest.fail("this is too late"))
    monkeypatch.chdir(files)
    assert main(["compile", "model.onnx", "-o", "out", *options]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert said in sentence
    assert not Path("out").exists()
