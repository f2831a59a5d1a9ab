"""Every verb as a user types it: output, exit codes, one sentence for bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal
from undense.cli import main

TEXT = """
agraph (float[batch, 64] x) => (float[batch, 40] y) {
    a = MatMul (x, first)
    b = Relu (a)
    y = MatMul (b, second)
}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    ir.save(graph(TEXT, first=normal(64, 96), second=normal(96, 40)), folder / "model.onnx")
    random = np.random.default_rng(0)
    samples = {f"{i}/x": random.standard_normal((16, 64)).astype(np.float32) for i in range(12)}
    np.savez(folder / "calib.npz", **samples)  # type: ignore[arg-type]
    np.savez(folder / "in.npz", x=samples["0/x"])
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    out = model.parent / "artifact"
    assert main(["compile", str(model), "-o", str(out), "--target", "ort-cpu", "--quiet"]) == 0
    return out


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_compile_with_no_option_makes_an_artifact(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(model), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "auto: 8-bit codes are smaller" in shown
    assert "data-free" in shown
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 0


def test_compile_with_rules_and_calibration(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- {match: first, scheme: 'low_rank{ratio=0.5}'}\n- {match: 're:sec.*', scheme: dense}\n"
    )
    report = _json(
        capsys, "compile", model, "-o", tmp_path / "out", "--target", "ort-cpu",
        "--rules", rules, "--calib", model.parent / "calib.npz",
    )  # fmt: skip
    schemes = {site["name"]: site["scheme"] for site in report["sites"]}
    assert schemes == {"first": "low_rank{rank=19}", "second": "dense"}
    assert report["calibration"]["samples"] == 9


def test_inspect_shows_a_model_and_an_artifact(
    model: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, compiled = (_json(capsys, "inspect", path) for path in (model, artifact))
    assert [site["scheme"] for site in plain["sites"]] == ["dense", "dense"]
    assert all(site["scheme"].startswith("int_codes") for site in compiled["sites"])
    assert main(["inspect", str(model), "--graph"]) == 0
    assert "%0 = MatMul(x, first)" in capsys.readouterr().out
    assert main(["inspect", str(model), "--diff", str(artifact)]) == 0
    difference = capsys.readouterr().out
    assert "-  %0 = MatMul(x, first)" in difference
    assert "+  %0 = undense.IntCodes(x, first.codes, first.scales" in difference


def test_run_writes_the_outputs(model: Path, artifact: Path, tmp_path: Path) -> None:
    given, wanted = str(model.parent / "in.npz"), str(tmp_path / "out.npz")
    assert main(["run", str(artifact), "--input", given, "--output", wanted]) == 0
    with np.load(wanted) as found:
        assert found["y"].shape == (16, 40)


def test_float16_model_takes_files_of_float32(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "half", model.parent / "in.npz"
    report = _json(
        capsys, "compile", model, "-o", out, "--target", "ort-cpu", "--dtype", "float16",
        "--scheme", "int_codes", "--calib", model.parent / "calib.npz",
    )  # fmt: skip
    assert report["dtype"] == "float16"
    wanted = tmp_path / "out.npz"
    assert main(["run", str(out), "--input", str(given), "--output", str(wanted)]) == 0
    with np.load(wanted) as found:
        assert found["y"].dtype == np.float16
    fresh = _json(capsys, "verify", out, "--against", model, "--input", given)
    assert fresh["holds"]
    assert 0 < fresh["fresh_approximation_error"] < 0.05
    timed = _json(capsys, "bench", out, "--against", model, "--repeats", "2")
    assert timed["speedup"] > 0


def test_verify_against_the_dense_model(
    model: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, "verify", artifact)
    assert found["holds"]
    given = model.parent / "in.npz"
    fresh = _json(capsys, "verify", artifact, "--against", model, "--input", given)
    assert 0 < fresh["fresh_approximation_error"] < 0.05


def test_verify_that_does_not_hold_exits_with_1(artifact: Path, tmp_path: Path) -> None:
    import hashlib
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    with np.load(copy / "reference_outputs.npz") as stored:
        changed = {name: array * 1.5 for name, array in stored.items()}
    np.savez(copy / "reference_outputs.npz", **changed)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["files"]["reference_outputs.npz"]
    data = (copy / "reference_outputs.npz").read_bytes()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(copy), "--quiet"]) == 1


def test_bench_reports_ratios(
    model: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, "bench", artifact, "--against", model, "--repeats", "3")
    assert {"artifact", "against", "speedup", "threads", "machine"} <= set(found)
    assert found["speedup"] == pytest.approx(
        found["against"]["median_ms"] / found["artifact"]["median_ms"]
    )
    assert _json(capsys, "bench", artifact, "--repeats", "3")["speedup"] is None


def test_doctor_names_what_is_usable_and_the_traps(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, "doctor", artifact / "model.onnx")
    assert found["usable"]
    assert found["engines"] == {"ort": True, "tvm": True}
    assert not found["problems"]
    assert found["tuning"]["database"].endswith("tuning.json")
    assert {"records", "measured_here", "shipped"} <= set(found["tuning"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["compile", "missing.onnx", "-o", "out"], "missing.onnx"),
        (["compile", "MODEL", "-o", "out", "--target", "cuda -arch=x"], "sm_80"),
        (["compile", "MODEL", "-o", "out", "--dtype", "int8"], "float16"),
        (["compile", "MODEL", "-o", "out", "--dtype", "bfloat16"], "bfloat16"),
        (["compile", "MODEL", "-o", "out", "--scheme", "low_rang"], "low_rank"),
        (["compile", "MODEL", "-o", "out", "--budget", "size_ratio=0.5"], "budget"),
        (["compile", "MODEL", "-o", "out", "--rules", "missing.yaml"], "missing.yaml"),
        (["compile", "MODEL", "-o", "out", "--calib", "missing.npz"], "missing.npz"),
        (["compile", "MODEL", "-o", "out", "--plan", "missing.json"], "missing.json"),
        (["compile", "MODEL", "-o", "out", "--ignore", "third"], "third"),
        (["inspect", "missing.onnx"], "missing.onnx"),
        (["run", "missing", "--input", "in.npz", "--output", "out.npz"], "missing"),
        (["verify", "missing"], "missing"),
        (["bench", "missing"], "missing"),
        (["tune", "missing"], "missing"),
        (["doctor", "missing.onnx"], "missing.onnx"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], named: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    assert main(arguments) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    sentences = [line for line in shown if line.startswith("undense: ")]
    assert len(sentences) == 1
    assert named in sentences[0]
    assert not any("Traceback" in line for line in shown)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--target", "cuda -arch=x"], "sm_80"),
        (["--dtype", "int8"], "float16"),
        (["--scheme", "low_rang"], "low_rank"),
        (["--rules", "missing.yaml"], "missing.yaml"),
        (["--ignore", "re:("], "re:("),
        (["--calib", "missing.npz"], "missing.npz"),
        (["--calib", "MODEL"], "model.onnx: not an .npz"),
        (["--budget", "size=0.5"], "size_ratio"),
        (["--plan", "missing.json"], "missing.json"),
        (["--plan", "missing.json", "--scheme", "dense"], "leave it out"),
        (["--plan", "missing.json", "--ignore", "first"], "leave it out"),
        (["--seed", "-1"], "seed -1"),
        (["--portable"], "portable"),
        (["--kernels", "tvm"], "kernels"),
        (["--target", "ort-cpu", "--no-onnx"], "model.onnx"),
        (["--use-cuda-graph", "batch=8"], "CUDA graphs"),
        (["--target", "cuda", "--use-cuda-graph", ""], "tokens=8"),
        (["--target", "cuda", "--use-cuda-graph", "batch=8,batch=4"], "'batch' is there twice"),
        (["--output", "/proc/nowhere/out"], "/proc/nowhere"),
    ],
)
def test_wrong_options_of_compile_are_told_before_anything_long(
    options: list[str], named: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def too_late(*_: object) -> None:
        pytest.fail("the option was looked at too late")

    monkeypatch.setattr("undense.frontend.load.load", too_late)
    if "/proc/nowhere/out" not in options:  # asking the disk takes the last of the checks
        monkeypatch.setattr("undense.backend.package.check_toolchain", too_late)
    monkeypatch.chdir(tmp_path)
    options = [str(model) if option == "MODEL" else option for option in options]
    assert main(["compile", str(model), "-o", "out", *options]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tune", "OUT", "--merge", "missing.json"], "missing.json: there is no such file"),
        (["tune", "OUT", "--trials", "-1"], "--trials -1: give 0 or more"),
        (["tune", "OUT", "--export", "folder", "--trials", "0"], "--trials 0: give 1 or more"),
        (["tune", "OUT", "--threads", "0"], "--threads 0: give 1 or more"),
        (["tune", "OUT", "--rows", ""], "rows is empty; give a value or leave it out"),
        (["tune", "OUT", "--rows", "one"], "--rows 'one'"),
        (["tune", "OUT", "--export", ""], "export is empty"),
        (["cache", "--clear", ""], "clear is empty"),
        (["bench", "OUT", "--repeats", "0"], "--repeats 0: give 1 or more"),
        (["bench", "OUT", "--engine", "onnx"], "engine 'onnx' is not known"),
        (["run", "OUT", "--input", "x", "--output", "y", "--engine", "tvm"], "engine 'tvm'"),
    ],
)
def test_wrong_options_of_other_verbs_are_one_sentence(
    arguments: list[str], named: str, artifact: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [str(artifact) if argument == "OUT" else argument for argument in arguments]
    assert main(arguments) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert named in sentence


def test_the_other_engine_of_an_artifact(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compile", str(model), "-o", str(out), "--quiet"]) == 0
    assert _json(capsys, "verify", out, "--engine", "ort")["engine"] == "ort"
    assert _json(capsys, "verify", out)["engine"] == "tvm"


def test_traceback_shows_where(tmp_path: Path) -> None:
    from undense.passes.errors import LoadError

    with pytest.raises(LoadError):
        main(["inspect", str(tmp_path / "missing.onnx"), "--traceback"])


def test_a_terminated_compile_leaves_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "artifact"
    out.parent.mkdir()
    program = [sys.executable, "-m", "undense.cli"]
    command = [*program, "compile", str(model), "-o", str(out), "--target", "llvm"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "80"})
    while not list(out.parent.iterdir()) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2, shown
    assert b"interrupted" in shown
    assert list(out.parent.iterdir()) == []


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in
               ("compile", "inspect", "run", "verify", "bench", "tune", "doctor"))  # fmt: skip


def test_compiling_without_its_packages_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnx_ir" else real(name)
    )
    for verb in (["compile", "-o", "out"], ["plan", "--calib", "calibration.npz"]):
        assert main([verb[0], "model.onnx", *verb[1:]]) == 2
        said = capsys.readouterr().err
        assert said == "undense: compiling needs onnx_ir: pip install 'undense[cpu]'\n"


def test_a_package_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    monkeypatch.delitem(sys.modules, "undense.frontend.load", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["doctor", str(artifact / "model.onnx")]) == 2
    assert capsys.readouterr().err == "undense: onnx is missing: pip install 'undense[cpu]'\n"
