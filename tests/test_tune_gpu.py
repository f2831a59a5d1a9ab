"""Tuning for GPUs: candidates that fit, measured by the script on the emulation, and merged."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cuda_emulation
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import EMULATED_HEADERS, Resources
from undense.backend.tuning import remote
from undense.backend.tuning.cuda import folder as folders
from undense.backend.tuning.cuda import servers
from undense.backend.tuning.cuda import tune as tuning
from undense.backend.tuning.cuda.runner import gpu, measure, product
from undense.backend.tuning.database import database_path, read_records
from undense.cli import main
from undense.passes.errors import LoweringError, TuningError
from undense.runtime.artifact import open_artifact

TARGET = "cuda -arch=sm_90"
TEXT = "agraph (float16[N, 128] x) => (float16[N, 64] y) {y = MatMul (x, w)}"


def emulated_code(source: str, architectures: Sequence[str]) -> bytes:
    return cuda_emulation.compile(source, EMULATED_HEADERS)


def emulated_code_and_resources(
    source: str, architectures: Sequence[str]
) -> tuple[bytes, list[Resources]]:
    return emulated_code(source, architectures), []


class Emulated(gpu.Gpu):
    """Memory of the host, and its clock around launches of the emulated driver."""

    device = "cpu"
    cache_bytes, free_bytes, stream = 40_000, 2**30, 0

    def __init__(self) -> None:
        self.driver = cuda_emulation.load()

    def facts(self) -> dict[str, Any]:
        return {"gpu": "an emulation", "capability": "9.0", "torch": "none"}

    def synchronize(self) -> None:
        pass

    def captured(self, calls: Sequence[gpu.Call]) -> gpu.Call:
        def replay() -> None:
            for call in calls:
                call()

        return replay

    def seconds(self, call: gpu.Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


@pytest.fixture(autouse=True)
def emulation(cuda_device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))
    with _emulated(monkeypatch):
        yield


@contextlib.contextmanager
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(folders, "code_and_resources", emulated_code_and_resources)
    monkeypatch.setattr(folders, "nvcc_version", lambda: (13, 0))
    monkeypatch.setattr(tuning, "check_nvcc", lambda _: None)
    monkeypatch.setattr(product, "_SAMPLE", 1e-9)
    with device_code_by(emulated_code):
        yield


def model() -> ir.Model:
    return graph(TEXT, w=normal(128, 64).astype("float16"))


@pytest.fixture(scope="module")
def made(cuda_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact, and its candidates as they are exported."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch, _emulated(monkeypatch):
        monkeypatch.setenv("UNDENSE_CACHE", str(folder / "cache"))
        undense.compile(model(), target=TARGET, scheme="dense", output=folder / "out")
        found = tuning.export_candidates(folder / "out", folder / "exported", trials=2, rows=[8])
    assert [kernel["candidates"] for kernel in found["kernels"]] == [2]
    return folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "exported", tmp_path / "folder"))


def measured(folder: Path, *options: str, machine: Callable[[], gpu.Gpu] = Emulated) -> int:
    return measure.main(folder, options, machine)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def with_gain(folder: Path, ratio: float = 0.5) -> dict[str, Any]:
    """Results that say that the first candidate is faster by so much."""
    document = results(folder)
    best = document["kernels"][0]["best"]
    best.update(candidate=1, ratio=ratio, spread=0.1, median_us=5.0, default_us=10.0)
    (folder / "results.json").write_text(json.dumps(document))
    return document


def test_exported_measured_and_merged(
    artifact: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (artifact / "module.so").read_bytes()
    assert measured(exported) == 0
    (entry,) = results(exported)["kernels"]
    assert entry["wrong"] == []
    assert len(entry["brief"]) == 2
    assert entry["best"]["median_us"] > 0
    with_gain(exported)
    assert main(["tune", str(artifact), "--merge", str(exported / "results.json")]) == 0
    out = capsys.readouterr().out
    assert "cuda dense float16" in out
    assert "the artifact was built again" in out
    (record,) = read_records()
    candidates = json.loads((exported / "candidates.json").read_text())
    assert record.fields == candidates["kernels"][0]["candidates"][1]["fields"]
    assert (record.processor, record.machine) == ("sm_90", "an emulation")
    assert record.versions["nvcc"] == "13.0"
    after = (artifact / "module.so").read_bytes()
    assert after != before
    tuned_too = undense.compile(model(), target=TARGET, scheme="dense")
    assert (tuned_too.path / "module.so").read_bytes() == after
    assert tuned_too.report["tuning"]["tuned"] == 1
    plain = undense.compile(model(), target=TARGET, scheme="dense", tuned=False)
    assert (plain.path / "module.so").read_bytes() == before
    assert undense.compile(model(), target="cuda", scheme="dense").report["tuning"]["tuned"] == 0


def test_cuda_graphs_stay_when_an_artifact_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for wanted in (["N=8"], False):
        undense.compile(model(), target=TARGET, scheme="dense", use_cuda_graph=wanted, output=path)
        graphs = tuning._opened(open_artifact(path)).target.graphs
        assert (False if graphs is None else graphs.wanted) == wanted


def test_a_gain_within_the_spread_changes_nothing(artifact: Path, exported: Path) -> None:
    assert measured(exported) == 0
    with_gain(exported, ratio=0.95)
    found = tuning.merge_results(artifact, exported / "results.json")
    assert not found["rebuilt"]
    assert [row["fields"] for row in found["results"]] == [{}]
    (record,) = read_records()
    assert record.fields == {}


def test_measuring_goes_on_where_it_ended(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(exported, "--seconds", "-1") == 0
    assert "1 kernels are left; run it again" in capsys.readouterr().out
    assert not (exported / "results.json").exists()
    assert measured(exported) == 0
    first = results(exported)
    assert measured(exported) == 0
    assert results(exported) == first
    first["gpu"] = "another"
    (exported / "results.json").write_text(json.dumps(first))
    assert measured(exported) == 2
    assert "is of another GPU" in capsys.readouterr().err


def test_wrong_candidates_are_dropped_and_failing_ones_left_out_of_the_next_run(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported / "candidates.json"
    document = json.loads(path.read_text())
    rule, wrong, failing = document["kernels"][0]["candidates"]
    wrong["launch"]["grid"] = [1, 1, 1]  # leaves outputs of other blocks at zero
    failing["launch"]["kernel"] = "no_kernel"
    document["digest"] = folders.digest(document)
    path.write_text(json.dumps(document))
    assert measured(exported) == 1
    said = capsys.readouterr().out
    assert "candidate 2 failed (cuModuleGetFunction: CUDA_ERROR_NOT_FOUND" in said
    assert "run it again to go on without" in said
    assert measured(exported) == 0
    found = results(exported)
    assert [entry["candidate"] for entry in found["failed"]] == [2]
    assert found["kernels"][0]["wrong"] == [1]
    assert found["kernels"][0]["best"] is None
    assert rule["fields"] == {}


def test_a_folder_that_was_copied_in_part_is_refused(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next((exported / "code").iterdir())
    code.write_bytes(code.read_bytes()[:-1])
    assert measured(exported) == 2
    assert "is damaged: copy the folder again" in capsys.readouterr().err


def spoil(folder: Path, name: str, **values: Any) -> None:
    document = json.loads((folder / name).read_text())
    document.update(values)
    if "digest" in document and "kernels" not in values:
        document["digest"] = folders.digest(document)
    (folder / name).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("candidates.json", {"kernels": []}, "was changed after it was exported"),
        ("candidates.json", {"seed": 1}, "was measured with other candidates"),
        ("candidates.json", {"target": "cuda -arch=sm_80"}, "is for 'cuda -arch=sm_80'"),
        ("candidates.json", {"versions": {"apache-tvm": "0"}}, "candidates.json is damaged"),
        (
            "candidates.json",
            {"versions": {"apache-tvm": "0", "schedules": "0"}},
            "was made by apache-tvm 0 and",
        ),
        ("results.json", {"capability": "8.0"}, "of compute capability 8.0, which"),
        ("results.json", {"kernels": [{"best": {}}]}, "results.json is damaged"),
        ("results.json", {"kernels": [{"best": {}, "kernel": 7}]}, "results.json is damaged"),
        ("results.json", {"kernels": [{"best": {"candidate": 0}, "kernel": -1}]}, "is negative"),
        ("results.json", {"format": 9}, "is not of format 1"),
    ],
)
def test_results_that_do_not_fit_are_one_sentence(
    name: str,
    values: dict[str, Any],
    said: str,
    artifact: Path,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measured(exported) == 0
    spoil(exported, name, **values)
    assert main(["tune", str(artifact), "--merge", str(exported / "results.json")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not database_path().exists()


def test_bad_commands_are_one_sentence(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(artifact)]
    for options, said in [
        (["--export", str(tmp_path)], "exists already"),
        (["--export", str(tmp_path / "a"), "--rows", "32"], "chosen for 8, 16, 64, 2048"),
        (["--export", str(tmp_path / "a"), "--trials", "0"], "--trials 0: give 1 or more"),
        (["--export", "a", "--merge", "b"], "give --export or --merge"),
        (["--merge", str(tmp_path / "results.json")], "results.json: there is no such file"),
    ]:
        assert main([*command, *options]) == 2
        assert said in capsys.readouterr().err
    undense.compile(
        graph(TEXT.replace("16[", "["), w=normal(128, 64)), scheme="dense", output=tmp_path / "cpu"
    )
    assert main(["tune", str(tmp_path / "cpu"), "--export", "a"]) == 2
    assert "are for target cuda" in capsys.readouterr().err


def test_without_a_gpu_it_is_said(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "has_gpu", lambda _: False)
    assert main(["tune", str(artifact)]) == 2
    assert "no GPU here runs code for cuda -arch=sm_90: take --export FOLDER" in (
        capsys.readouterr().err
    )


def test_in_one_go_where_there_is_a_gpu(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", lambda folder, progress: measured(folder))
    found = tuning.tune_on_gpu(undense.load(artifact).artifact, 1, [16], None, lambda *_: None)
    assert [row["tried"] for row in found["results"]] == [1]
    assert len(read_records()) == 1


def test_on_servers_of_a_tracker(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import rpc

    keys = []

    @contextlib.contextmanager
    def lent(tracker: str, key: str, threads: int | None, kind: Any) -> Iterator[list[Any]]:
        keys.append((tracker, key))
        yield [kind(rpc.LocalSession(), artifact.parent, threads)]

    monkeypatch.setattr(servers, "remote_devices", lent)
    monkeypatch.setattr(servers, "nvcc_version", lambda: (13, 0))
    monkeypatch.setattr(remote, "_FLUSHED", 2**12)
    found = tuning.tune_on_gpu(undense.load(artifact).artifact, 2, [8], "host:1", lambda *_: None)
    assert keys == [("host:1", "sm_90")]
    assert [(row["tried"], row["wrong"]) for row in found["results"]] == [(2, 0)]
    (record,) = read_records()
    assert record.processor == "sm_90"
    assert record.machine


def test_what_does_not_fit_is_left_out_and_equal_code_is_one(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(100))

    def code(source: str, architectures: Sequence[str]) -> tuple[bytes, list[Resources]]:
        number = next(numbers)
        spilled = 8 if number == 2 else 0
        if number == 3:
            raise LoweringError("too much")
        name = b"rule" if number == 0 else b"another"
        return name, [Resources("candidate", "sm_90", 32, 0, spilled, 0)]

    monkeypatch.setattr(folders, "code_and_resources", code)
    monkeypatch.setattr(folders, "usable_cores", lambda: 1)
    found = tuning.export_candidates(artifact, tmp_path / "folder", trials=4, rows=[8])
    (kernel,) = found["kernels"]
    assert kernel["candidates"] + kernel["left_out"] == 4
    assert 1 <= kernel["candidates"] <= 2
    assert len(list((tmp_path / "folder" / "code").iterdir())) == 2


def test_the_rebuilt_artifact_holds_on_the_emulation(artifact: Path, exported: Path) -> None:
    assert measured(exported) == 0
    with_gain(exported)
    found = tuning.merge_results(artifact, exported / "results.json")
    assert found["rebuilt"]
    assert found["holds"]


def test_nothing_of_the_gpu_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys\n"
        "import undense.backend.tuning.cuda.runner.measure, undense.cli\n"
        "assert 'torch' not in sys.modules and 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_exported_script_needs_nothing_of_undense(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(exported / "measure.py"), "--help"],
        capture_output=True, text=True, timeout=60, env={},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--seconds" in done.stdout


def test_the_script_is_run_again_without_what_failed(tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    script.write_text(
        "import pathlib, sys\n"
        "flag = pathlib.Path(__file__).with_name('flag')\n"
        "print('a kernel', flush=True)\n"
        "if not flag.exists():\n"
        "    flag.touch()\n"
        "    sys.exit(1)\n"
    )
    told: list[int] = []
    tuning._measure(tmp_path, told.append)
    assert told == [1, 2]
    script.write_text("import sys\nprint('measure.py: no torch', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(TuningError, match=r"failed \(measure\.py: no torch\): see undense"):
        tuning._measure(tmp_path, told.append)
