"""`undense tune`: what is measured is kept, used, said, and leaves a module that still holds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.backend.kernels.gemm import FloatTiling
from undense.backend.relax_build.walker import Walk
from undense.backend.target import Target
from undense.backend.tuning import artifact as tuning
from undense.backend.tuning import rebuild
from undense.backend.tuning.database import add_records, database_path, read_records
from undense.backend.tuning.device import LocalDevice
from undense.backend.tuning.measure import Bench, Comparison
from undense.backend.tuning.program import arguments, programs
from undense.backend.tuning.record import processor_name
from undense.backend.tuning.search import Found
from undense.backend.tuning.spaces import candidates
from undense.cli import main
from undense.passes.errors import LoweringError

TEXT = """
agraph (float[4, 64] x) => (float[4, 48] y) {
    a = MatMul (x, first)
    b = CumSum (a, axis)
    y = MatMul (b, second)
}
"""
FIELDS = {"panels": (2, 1), "unroll": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))


def model() -> ir.Model:
    return graph(TEXT, first=normal(64, 48), second=normal(48, 48), axis=np.array(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "out"
    undense.compile(model(), scheme="dense", output=path)
    return path


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def found(fields: dict[str, Any]) -> Found:
    return Found(fields, Comparison(1.0, 2.0, 0.5, 0.1), tried=3, wrong=0)


def fake_search(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    monkeypatch.setattr(tuning.Search, "run", lambda *_: found(fields))


def test_tune_measures_and_the_module_still_holds(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(artifact), "--trials", "2", "--rows", "1", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    shapes = [(row["kind"], row["out_features"], row["in_features"]) for row in result["results"]]
    assert shapes == [("dense", 48, 64), ("dense", 48, 48)]
    assert all(row["tried"] == 2 and row["wrong"] == 0 for row in result["results"])
    assert [(row["name"], row["wrong"]) for row in result["functions"]] == [("cumsum", 0)]
    assert result["holds"] in (True, None)
    assert len(read_records()) == 3
    assert main(command) == 0
    assert "speed-up" in capsys.readouterr().out


def test_tune_builds_with_what_it_found_and_compile_too(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (artifact / "module.so").read_bytes()
    fake_search(monkeypatch, FIELDS)
    result = tuning.tune(artifact, trials=3, rows=[8])
    assert result["rebuilt"]
    assert result["holds"]
    assert result["tuning"]["tuned"] == 2
    after = (artifact / "module.so").read_bytes()
    assert after != before
    assert not tuning.tune(artifact, trials=0)["rebuilt"]
    tuned_too = undense.compile(model(), scheme="dense")
    assert (tuned_too.path / "module.so").read_bytes() == after
    assert [record["source"] for record in tuned_too.report["tuning"]["records"]] == [
        "measured here",
        "measured here",
    ]
    plain = undense.compile(model(), scheme="dense", tuned=False)
    assert (plain.path / "module.so").read_bytes() == before
    assert plain.report["tuning"]["tuned"] == 0


def test_a_rebuild_without_records_gives_the_same_bytes(artifact: Path) -> None:
    before = {item.name: item.read_bytes() for item in artifact.iterdir()}
    add_records([])
    record = _record(artifact, FIELDS)
    add_records([record])
    assert tuning.tune(artifact, trials=0)["rebuilt"]
    add_records([dataclasses.replace(record, fields={})])
    assert tuning.tune(artifact, trials=0)["rebuilt"]
    after = {item.name: item.read_bytes() for item in artifact.iterdir()}
    assert after == before


def _record(artifact: Path, fields: dict[str, Any]) -> Any:
    from test_tuning_database import RECORD

    processor = processor_name(Target.parse("llvm"))
    return dataclasses.replace(
        RECORD, processor=processor, out_features=48, in_features=64, rows=8, fields=fields
    )


def test_a_record_that_fits_no_tiling_is_said(artifact: Path) -> None:
    add_records([_record(artifact, {"width": 3})])
    with pytest.raises(
        LoweringError, match=r"48x64 for .* rows does not fit .* 'width'.*without tuned"
    ):
        undense.compile(model(), scheme="dense")


def test_candidates_are_in_the_order_of_the_seed() -> None:
    tiling = FloatTiling()
    everything = list(candidates(tiling, "dense", 8, seed=0))
    assert everything == list(candidates(tiling, "dense", 8, seed=0))
    assert everything != list(candidates(tiling, "dense", 8, seed=1))
    assert {} not in everything
    assert not list(candidates("no tiling", "dense", 8, seed=0))


def test_only_steps_that_a_tiling_decides_are_measured_and_wrong_ones_are_found() -> None:
    machine = Target.parse("llvm").tvm()
    with machine:
        work = Walk(model()).builder.work
    ((workload, each), *_) = work.items()
    tilings = [FIELDS, dict(FIELDS), {"chains": 2}, {"group": 1}]
    default, others = programs(workload, each, 8, tilings, 1, machine)
    assert [program.fields for program in others] == [FIELDS]
    bench = Bench(LocalDevice(1), machine, default, arguments(each, default, 8, seed=0))
    compared = bench.compare(others[0], samples=3)
    assert compared is not None
    assert compared.median_us > 0
    bench._outputs[0] += 1
    assert bench.compare(others[0], samples=3) is None


def test_a_gain_within_the_spread_is_none() -> None:
    assert Comparison(9, 10, ratio=0.9, spread=0.05).faster
    assert not Comparison(9, 10, ratio=0.9, spread=0.1).faster


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("int_codes{bits=4,group=32}", "FourBits"),
        ("int_codes{bits=8,group=32,activations=int8}", "EightBits"),
        ("low_rank{rank=16}", "low_rank"),
        ("monarch{blocks=4,rank=4}", "monarch"),
    ],
)
def test_structured_layers_are_tuned(scheme: str, kind: str, tmp_path: Path) -> None:
    text = "agraph (float[4, 64] x) => (float[4, 160] y) {y = MatMul (x, w)}"
    undense.compile(graph(text, w=normal(64, 160)), scheme=scheme, output=tmp_path / "out")
    result = tuning.tune(tmp_path / "out", trials=1, rows=[8], threads=1)
    assert {row["kind"].split("(")[0] for row in result["results"]} == {kind}
    assert all(row["tried"] and not row["wrong"] for row in result["results"])
    assert result["holds"] is not False
    assert not result["untunable"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--trials", "-1"], "--trials -1: give 0 or more"),
        (["--rows", "3"], "tilings are chosen for 1, 8, 32, 128"),
        (["--rows", "few"], "--rows 'few'"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], named: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(artifact), *options]) == 2
    assert named in capsys.readouterr().err
    assert not database_path().exists()


def test_artifacts_that_cannot_be_tuned_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undense.compile(model(), target="ort-cpu", output=tmp_path / "ort")
    assert main(["tune", str(tmp_path / "ort")]) == 2
    assert "no tilings to measure; compile for target llvm" in capsys.readouterr().err
    undense.compile(model(), with_onnx=False, output=tmp_path / "bare")
    assert main(["tune", str(tmp_path / "bare")]) == 2
    assert "holds no model.onnx" in capsys.readouterr().err


POOLED = """
agraph (float[1, 8, 24, 24] x) => (float[1, 16, 12, 12] y) {
    a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
    y = Conv <group = 4, pads = [1, 1, 1, 1]> (a, w)
}
"""


def test_functions_that_no_rule_fits_are_searched_and_compiled_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pooled = graph(POOLED, w=normal(16, 2, 3, 3))
    plain = undense.compile(pooled, scheme="dense", output=tmp_path / "out")
    monkeypatch.setattr(Comparison, "faster", True)
    result = tuning.tune(tmp_path / "out", trials=4, threads=1)
    assert {row["name"] for row in result["functions"]} == {"pool", "conv"}
    assert all(row["searched"] and not row["wrong"] for row in result["functions"])
    assert not result["results"]
    assert result["rebuilt"]
    assert result["holds"]
    assert not tuning.tune(tmp_path / "out", trials=0)["rebuilt"]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "schedules that were searched for: conv, pool" in out
    assert "no schedule of their own" not in out
    tuned = undense.compile(pooled, scheme="dense")
    assert not tuned.report["generic_functions"]
    feed = {"x": normal(1, 8, 24, 24)}
    np.testing.assert_allclose(tuned.run(feed)["y"], plain.run(feed)["y"], rtol=1e-5, atol=1e-5)


def test_functions_of_any_size_are_not_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_size = graph(
        "agraph (float[N, 8] x) => (float[N, 8] y) {y = CumSum (x, axis)}", axis=np.array(1)
    )
    undense.compile(open_size, scheme="dense", output=tmp_path / "out")
    assert main(["tune", str(tmp_path / "out"), "--trials", "1"]) == 0
    assert "no schedule to try: cumsum: its sizes are not fixed" in capsys.readouterr().out


def test_an_artifact_from_before_functions_were_searched_is_built_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not tuning.tune(artifact, trials=0)["rebuilt"]
    report = json.loads((artifact / "report.json").read_text())
    del report["tuning"]["functions"]
    monkeypatch.setattr(rebuild, "read_report", lambda _: report)
    assert tuning.tune(artifact, trials=0)["rebuilt"]


def test_what_metaschedule_cannot_do_is_said(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tvm.s_tir.meta_schedule import TuneContext

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a rule of its own")

    monkeypatch.setattr(TuneContext, "pre_tuning", fail)
    fake_search(monkeypatch, {})
    assert main(["tune", str(artifact), "--trials", "1"]) == 0
    out = capsys.readouterr().out
    assert "no schedule to try: cumsum: MetaSchedule has no schedule of it" in out


@pytest.mark.parametrize("trace", [[], [[["Fuse", ["b9"], [1], ["l1"]]], []]])
def test_a_trace_that_fits_no_function_is_said(trace: Any, artifact: Path) -> None:
    from test_tuning_database import FUNCTION

    (asked,) = undense.load(artifact).report["tuning"]["functions"]
    processor = processor_name(Target.parse("llvm"))
    add_records(
        [
            dataclasses.replace(
                FUNCTION, processor=processor, function=asked["function"], trace=trace
            )
        ]
    )
    with pytest.raises(LoweringError, match=r"the tuning record of function .*without tuned"):
        undense.compile(model(), scheme="dense")


def test_functions_without_a_schedule_of_their_own_are_named(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(artifact)]) == 0
    assert "no schedule of their own: cumsum" in capsys.readouterr().out
