"""The bundle for GPU hosts and the page of its results."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from undense.backend.target import Target
from undense.passes.errors import InputError

from benchmarks.gpu import build, cases, products, runtime, table
from benchmarks.gpu.runner import run
from benchmarks.gpu.runner.baselines import LINEAR
from benchmarks.gpu.runner.results import Results
from benchmarks.gpu.runner.spec import read_cases, write_cases

TARGET = Target.parse("cuda -arch=sm_90")


def test_cases_are_read_back(tmp_path: Path) -> None:
    with TARGET.tvm():
        case, _ = products.product_case("low_rank{ratio=0.25}", (4096, 11008), "float16")
    assert case.weights[0].width % 16 == 0
    write_cases(tmp_path / "cases.json", [case], {"python": "3.12"})
    assert read_cases(tmp_path / "cases.json") == ([case], {"python": "3.12"})


def test_recipes_are_named_after_their_cases() -> None:
    names = [recipe.name for recipe in cases.recipes()]
    assert len(set(names)) == len(names)
    assert {aim.case for aim in table.AIMS} <= set(names)
    with TARGET.tvm():
        for scheme in cases.SCHEMES:
            case, _ = products.product_case(scheme, cases.SHAPES[0], "float16")
            assert case.name in names
            assert {tensor for call in case.calls for tensor in call.inputs} <= {
                "x", "hidden", *(t.name for weight in case.weights for t in weight.tensors)
            }  # fmt: skip


def test_without_a_gpu_the_plan_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with TARGET.tvm():
        case, _ = products.product_case("dense", (4096, 4096), "float16", rows=(1, 2048))
    write_cases(tmp_path / "cases.json", [case], {})
    assert run.main(tmp_path, ["--dry-run"]) == 2
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert "dense 4096x4096 float16, rows 1: 33.6 MB" in first
    assert first.endswith("at least 11.2 µs on an H100 by bytes")
    assert second.endswith("by operations")
    assert told.err == "this machine has no GPU that torch can use, so nothing is measured\n"
    assert run.main(tmp_path, ["--only", "nothing"]) == 2


def test_cases_for_another_gpu_are_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TARGET.tvm():
        case, _ = products.product_case("dense", (64, 64), "float16")
        hopper, _ = products.product_case("dense", (64, 64), "float16", (2048,), "sm_90a")
    assert hopper.name == "sm_90a dense 64x64 float16"
    results = Results(tmp_path / "results.json", {}, resume=False)
    assert run.runnable([case, hopper], (9, 0), results) == [case, hopper]
    assert not results.document["left_out"]
    assert run.runnable([hopper, case], (10, 0), results) == [case]
    (entry,) = results.document["left_out"]
    assert entry["case"] == hopper.name
    assert entry["reason"] == "it is for sm_90a alone, and this GPU is an sm_100"
    assert "is left out: it is for sm_90a alone" in capsys.readouterr().out


def test_the_page_needs_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        table.render(tmp_path)


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    machine = {
        "gpu": "GPU One", "multiprocessors": 132, "cache_bytes": 50 << 20, "torch": "2.11",
        "copy_bandwidth": 3e12, "cuda": "13.0", "rates": {"float16": 6e14},
    }  # fmt: skip
    row = {
        "case": "trit_planes{planes=2} 4096x11008 float16", "kind": "product", "dtype": "float16",
        "structure": "trit_planes{planes=2}", "sizes": {"rows": 1}, "correct": False,
        "times": {"undense": {"median": 12.34}}, "times_as_fast_as": {LINEAR: 2.5},
        "of_floor": 0.7, "of_copy_bandwidth": 0.81, "skipped": {"torch int4": "RuntimeError: no"},
    }  # fmt: skip
    hopper = {**row, "architecture": "sm_90a", "times": {"undense": {"median": 6.78}}}
    document = {
        "machine": machine, "bundle": {"sources": "abc", "target": "cuda"}, "rows": [row, hopper],
        "failed": [], "left_out": [],
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(document))
    kept = table.keep(tmp_path / "results.json", tmp_path / "kept")
    assert kept.name == "gpu-one.json"
    page = table.render(tmp_path / "kept")
    assert "12.3 (2.50x; 70 %, **wrong**)" in page
    assert "| trit_planes{planes=2} float16 | 12.3 (" in page
    assert "| trit_planes{planes=2} float16 sm_90a | 6.8 (" in page
    assert f"| {row['case']} | 1 | copy bandwidth | 0.8 | 0.81 | met |" in page
    assert f"| {row['case']} | 1 | {LINEAR} | 3 | 2.50 | missed |" in page
    assert "not measured" in page
    assert "- torch int4: RuntimeError: no" in page


def test_a_bundle_holds_runner_and_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    monkeypatch.setattr(runtime, "_download", lambda name, python, folder: wanted.append(name))
    monkeypatch.setattr(build, "compiled", lambda recipes, target, folder: [])
    folder, bundle = tmp_path / build.NAME, tmp_path / "bundle.tar.gz"
    build.write_bundle(folder, [], TARGET, "3.12")
    build.pack(folder, bundle)
    assert [name.split("==")[0] for name in wanted] == [
        "apache-tvm-ffi", "ml_dtypes", "typing_extensions",
    ]  # fmt: skip
    libraries = {path.name for path in (folder / "runtime/tvm/lib").iterdir()}
    assert {"libtvm_runtime.so", "libtvm_runtime_cuda.so"} <= libraries
    assert "libtvm_compiler.so" not in libraries
    assert bundle.stat().st_size < 20 << 20
    told = subprocess.run(
        [sys.executable, folder / "run.py", "--dry-run"], capture_output=True, text=True
    )
    assert (told.returncode, told.stderr) == (2, "no case is named by *\n")


def test_the_runner_imports_nothing_that_a_gpu_host_lacks() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "tvm", "tvm_ffi", ""}
    files = [*Path(run.__file__).parent.glob("*.py"), Path(build.__file__).with_name("entry.py")]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2
                names = [] if node.level else [node.module or ""]
            used = {name.split(".")[0] for name in names}
            assert used <= allowed | ({"runner"} if path.name == "entry.py" else set()), path.name
