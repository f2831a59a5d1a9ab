"""The silent fall-back of ONNX Runtime to the CPU is an error, which names the cause."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import undense
from artifacts import make_artifact, sample
from undense.backend.doctor import examine_machine
from undense.passes.errors import MissingDependencyError, TargetError, UndenseError
from undense.runtime import cuda_provider
from undense.runtime.unloaded import Unloaded, load_if_possible


class Driver:
    """NVIDIA's library, with a number of devices or an error."""

    def __init__(self, count: int, status: int = 0) -> None:
        self.count, self.status = count, status

    def cuInit(self, _flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0


def gpu_package(
    monkeypatch: pytest.MonkeyPatch, failure: str | None = None, *, printed: str = ""
) -> None:
    """onnxruntime-gpu in place of onnxruntime, as far as it is asked."""

    def allocate(*_: Any) -> None:
        if failure is not None:
            raise RuntimeError(failure)

    package = SimpleNamespace(
        __version__="1.31.1",
        get_available_providers=lambda: [cuda_provider.NAME, "CPUExecutionProvider"],
        preload_dlls=lambda: print(printed),
        OrtValue=SimpleNamespace(ortvalue_from_shape_and_type=allocate),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", package)


def driver(monkeypatch: pytest.MonkeyPatch, found: Driver | None) -> None:
    def load(name: str) -> Driver:
        if found is None:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return found

    monkeypatch.setattr(ctypes, "CDLL", load)


MISSING = """Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file
Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file
Please follow the documentation"""


@pytest.mark.parametrize("printed", ["", MISSING])
def test_nothing_in_the_way(
    printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that is missed without need is no obstacle."""
    gpu_package(monkeypatch, printed=printed)
    assert cuda_provider.obstacle() is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("printed", "found", "sentence"),
    [
        (MISSING, None, r"\(libcublasLt.so.13: .*\): pip install 'onnxruntime-gpu\[cuda,cudnn\]'$"),
        ("", None, r"\(libcuda.so.1: cannot open .*\): install NVIDIA's driver$"),
        ("", Driver(0), r"\(NVIDIA's driver finds no GPU\): make one visible"),
        ("", Driver(1, status=100), r"\(NVIDIA's driver finds no GPU\): make one visible"),
        ("", Driver(1), r"\(CUDA failure 2: out of memory\): mend that$"),
    ],
)
def test_what_is_in_the_way_is_named(
    printed: str, found: Driver | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_package(monkeypatch, "CUDA failure 2: out of memory", printed=printed)
    driver(monkeypatch, found)
    with pytest.raises(TargetError, match=sentence):
        raise cuda_provider.obstacle() or AssertionError


def test_a_package_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"pip install 'undense\[cuda\]'$"):
        raise cuda_provider.obstacle() or AssertionError


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime cannot be imported"):
        raise cuda_provider.obstacle() or AssertionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "tiny.undense", device="cuda").path


class FellBack:
    """A session that has done so."""

    def __init__(self, path: str, options: Any, **arguments: Any) -> None:
        self.arguments = arguments

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def hinder(monkeypatch: pytest.MonkeyPatch, obstacle: UndenseError | None) -> None:
    monkeypatch.setattr(cuda_provider, "obstacle", lambda: obstacle)


def test_an_obstacle_is_an_error_before_anything_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinder(monkeypatch, TargetError("the GPU is away: fetch it"))
    with pytest.raises(
        TargetError, match=r"tiny\.undense.*: the GPU is away: fetch it, or load it"
    ):
        undense.load(path)


def test_a_fall_back_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hinder(monkeypatch, None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(TargetError, match="fell back from CUDAExecutionProvider to CPUExec"):
        undense.load(path)


def test_what_the_gpu_refuses_is_an_error_of_the_target(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 35: driver version is insufficient\nexpr=cudaSetDevice(0)")

    hinder(monkeypatch, None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(
        TargetError, match=r"cannot use the GPU \(CUDA failure 35: .*insufficient\)"
    ):
        undense.load(path)


def test_the_cpu_is_taken_when_asked_for(path: Path) -> None:
    session = undense.load(path, device="cpu")
    assert session.device == "cpu"
    assert session(**sample())[0].shape == (3, 4)


def test_what_cannot_run_here_still_says_what_it_is(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinder(monkeypatch, MissingDependencyError("no GPU: buy one"))
    module = load_if_possible(path)
    assert isinstance(module, Unloaded)
    assert (module.engine, module.device, module.path) == ("ort", "cuda", path)
    assert [info.name for info in module.inputs] == ["x", "ids"]
    assert module.report["bytes"]["before"] == 1
    shown = repr(module)
    assert shown.startswith(f"<Unloaded {path}: (x: float32[n, 8], ids: int64[n]) -> ")
    assert ", ort on cuda, not loaded: " in shown
    assert "no GPU: buy one, or load it with device cpu>" in shown
    module.save(tmp_path / "copy.undense")
    assert undense.load(tmp_path / "copy.undense", device="cpu").device == "cpu"
    for call in (
        lambda: module(**sample()),
        lambda: module.run(sample()),
        lambda: module.trace(sample(), 1),
    ):
        with pytest.raises(MissingDependencyError, match="no GPU: buy one, or load it with"):
            call()


def test_other_refusals_are_not_swallowed(tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "a", "tvm", cpu_features=("avx9000",)).path
    with pytest.raises(TargetError, match="avx9000"):
        load_if_possible(path)


@pytest.mark.parametrize("obstacle", [None, TargetError("the GPU is away: fetch it")])
def test_doctor_says_so(obstacle: UndenseError | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hinder(monkeypatch, obstacle)
    found = examine_machine()["ort_cuda"]
    assert found == {"usable": obstacle is None, "problem": obstacle and str(obstacle)}
