"""Both engines run the same artifact alike, from several threads, with numpy or torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import undense
from artifacts import IN_FEATURES, expected, make_artifact, sample
from helpers import assert_close
from undense.passes.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    TargetError,
    UndenseError,
)
from undense.runtime.session import Session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("sessions") / "tiny.undense", "tvm").path


@pytest.fixture(params=["tvm", "ort"])
def session(folder, request) -> Session:
    return undense.load(folder, engine=request.param)


def test_a_session_shows_what_it_is(session: Session, folder) -> None:
    shown = repr(session)
    assert shown.startswith(
        f"<{type(session).__name__} {folder}: (x: float32[n, 8], ids: int64[n]) -> "
    )
    assert shown.endswith(f", {session.engine} on cpu>")


def assert_right(results, inputs) -> None:
    for got, want in zip(results, expected(**inputs), strict=True):
        assert_close(got, want, reduction=IN_FEATURES + 1)


def hide(monkeypatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else find(name)
    )


def test_numpy_in_numpy_out(session):
    inputs = sample()
    results = session(inputs["x"], inputs["ids"])
    assert isinstance(results, tuple)
    assert all(isinstance(value, np.ndarray) and value.flags.writeable for value in results)
    assert_right(results, inputs)
    assert_right(session(inputs["x"], ids=inputs["ids"]), inputs)
    named = session.run(inputs)
    assert list(named) == ["sum", "relu"]
    assert_right(named.values(), inputs)


def test_torch_in_torch_out(session):
    inputs = sample()
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    results = session(**tensors)
    assert all(isinstance(value, torch.Tensor) for value in results)
    assert_right([value.numpy() for value in results], inputs)
    results[0].add_(1)  # the memory is the caller's
    assert_right([value.numpy() for value in session(**tensors)], inputs)
    mixed = session(tensors["x"].requires_grad_(), inputs["ids"])
    assert isinstance(mixed[0], torch.Tensor)


@pytest.mark.parametrize("length", [0, 1, 16])
def test_every_length_within_the_bounds(session, length):
    inputs = sample(length)
    assert_right(session(**inputs), inputs)


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    frozen = x.copy()
    frozen.flags.writeable = False
    bytes_ = bytearray(x.nbytes + 4)
    shifted = np.frombuffer(bytes_, np.uint8)[4:].view(np.float32).reshape(x.shape)
    shifted[:] = x
    wide = np.zeros((x.shape[0], 2 * x.shape[1]), np.float32)
    wide[:, ::2] = x
    return {
        "transposed": np.asfortranarray(x),
        "strided": wide[:, ::2],
        "read-only": frozen,
        "misaligned": shifted,
        "reversed": x[::-1].copy()[::-1],
    }


@pytest.mark.parametrize("layout", ["transposed", "strided", "read-only", "misaligned", "reversed"])
def test_any_memory_layout(session, layout):
    inputs = sample()
    x = layouts(inputs["x"])[layout]
    assert np.array_equal(x, inputs["x"])
    assert_right(session(x, inputs["ids"]), inputs)


def test_results_outlive_the_session_and_later_calls(folder):
    for engine in ("tvm", "ort"):
        session = undense.load(folder, engine=engine)
        first, second = sample(5, seed=1), sample(5, seed=2)
        kept = session(**first)
        session(**second)
        del session
        assert_right(kept, first)


def test_bad_calls_do_not_reach_the_engine(session):
    inputs = sample()
    for changes, message in (
        ({"x": inputs["x"].astype(np.float64)}, "x: expected dtype float32, got float64"),
        ({"x": inputs["x"][None]}, r"x: expected shape \[n, 8\], got \[1, 3, 8\]"),
        ({"x": inputs["x"][:, :7]}, r"x: expected shape \[n, 8\], got \[3, 7\]"),
        ({"x": inputs["x"][:2]}, "ids: .*; n is 2 in x"),
        ({"ids": np.array([0, 10, 0])}, "ids: expected indices from 0 to 9, got 10"),
        ({"ids": np.array([0, -1, 0])}, "ids: expected indices from 0 to 9, got -1"),
        (sample(17), "x: n must lie in 0 to 16, got 17"),
    ):
        with pytest.raises(InputError, match=message):
            session.run({**inputs, **changes})
    assert_right(session(**inputs), inputs)


def test_calls_from_eight_threads(session):
    def work(seed: int) -> bool:
        for turn in range(25):
            inputs = sample(1 + (seed + turn) % 16, seed)
            assert_right(session(**inputs), inputs)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_a_call_leaves_the_threads_affinity_alone(session):
    before = os.sched_getaffinity(0)
    session(**sample())
    assert os.sched_getaffinity(0) == before


def test_num_threads_is_what_tvm_uses(folder):
    import tvm

    def used(number: int) -> int:
        session = undense.load(folder, engine="tvm", num_threads=number)
        session(**sample())
        return tvm.runtime.num_threads()

    with ThreadPoolExecutor(1) as fresh:  # a thread whose pool was never used
        assert [fresh.submit(used, number).result() for number in (2, 1, 2)] == [2, 1, 2]


def test_what_a_session_says_of_itself(session, folder):
    assert session.path == folder
    assert [info.name for info in session.inputs] == ["x", "ids"]
    assert [info.name for info in session.outputs] == ["sum", "relu"]
    assert session.report["bytes"]["before"] == 1
    assert session.num_threads >= 1


def test_save_and_load(session, tmp_path):
    session.save(tmp_path / "copy.undense")
    inputs = sample()
    assert_right(undense.load(tmp_path / "copy.undense", engine=session.engine)(**inputs), inputs)


def test_the_engine_of_the_manifest_is_the_default(folder, tmp_path):
    assert undense.load(folder).engine == "tvm"
    assert undense.load(make_artifact(tmp_path / "a", "ort").path).engine == "ort"


def test_the_other_engine_steps_in_with_a_warning(folder, monkeypatch):
    hide(monkeypatch, "tvm")
    with pytest.warns(UserWarning, match="made for apache-tvm, which is not installed"):
        session = undense.load(folder)
    assert session.engine == "ort"


def test_no_engine_says_what_to_install(folder, tmp_path, monkeypatch):
    hide(monkeypatch, "tvm", "onnxruntime")
    with pytest.raises(MissingDependencyError, match=r"install apache-tvm or onnxruntime \(pip"):
        undense.load(folder)
    with pytest.raises(MissingDependencyError, match="install apache-tvm"):
        undense.load(folder, engine="tvm")
    with pytest.raises(MissingDependencyError, match="engine to run: install onnxruntime"):
        undense.load(make_artifact(tmp_path / "a", "ort").path)


def test_an_engine_that_cannot_be_imported(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "undense.runtime.ort_session", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime is installed and cannot be imp"):
        undense.load(folder, engine="ort")


def test_files_of_the_engine_are_not_there(tmp_path):
    only_tvm = make_artifact(tmp_path / "tvm", "tvm", onnx=False).path
    with pytest.raises(ArtifactError, match="no files for engine 'ort', only for tvm"):
        undense.load(only_tvm, engine="ort")
    with pytest.raises(ArtifactError, match="no files for engine 'tvm', only for ort"):
        undense.load(make_artifact(tmp_path / "ort", "ort").path, engine="tvm")
    with pytest.raises(ArtifactError, match="no module to run"):
        undense.load(make_artifact(tmp_path / "none", "ort", onnx=False).path)


def test_what_load_does_not_know(folder):
    with pytest.raises(TargetError, match="device 'tpu' is not known; there are 'cpu' and 'cuda'"):
        undense.load(folder, device="tpu")
    with pytest.raises(TargetError, match="engine 'onnx' is not known"):
        undense.load(folder, engine="onnx")
    with pytest.raises(TargetError, match="a call needs at least 1 thread, got 0"):
        undense.load(folder, num_threads=0)


def test_a_damaged_module_is_never_opened(tmp_path):
    path = make_artifact(tmp_path / "a", "tvm").path / "module.so"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"module\.so is damaged: its sha256 is not that of"):
        undense.load(tmp_path / "a")


def test_a_module_for_another_machine_is_never_opened(tmp_path):
    path = make_artifact(tmp_path / "a", "tvm", cpu_features=("avx9000",)).path
    with pytest.raises(TargetError, match=r"processor with avx9000, .* lacks: .* engine ort"):
        undense.load(path)
    assert undense.load(path, engine="ort").engine == "ort"


def test_a_module_of_another_tvm_is_never_opened(tmp_path):
    path = make_artifact(tmp_path / "a", "tvm", versions={"apache-tvm": "0.19.0"}).path
    with pytest.raises(ArtifactError, match=r"compiled by apache-tvm 0\.19\.0 .* engine ort"):
        undense.load(path)


def test_files_that_engines_refuse(tmp_path):
    """With right hashes and wrong contents: a build that went wrong, not damage."""
    for engine, name in (
        ("tvm", "module.so"),
        ("tvm", "weights.safetensors"),
        ("ort", "model.onnx"),
    ):
        path = make_artifact(tmp_path / name, engine).path
        (path / name).write_bytes(b"nothing of use")
        document = json.loads((path / "manifest.json").read_text())
        digest = hashlib.sha256(b"nothing of use").hexdigest()
        document["files"][name] = {"bytes": 14, "sha256": digest}
        (path / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(ArtifactError, match=name):
            undense.load(path)


def test_a_manifest_that_lists_other_inputs_than_the_model(tmp_path):
    info = undense.load(make_artifact(tmp_path / "a", "ort").path).inputs
    path = make_artifact(tmp_path / "b", "ort", inputs=info[:1]).path
    with pytest.raises(ArtifactError, match="disagree on inputs or outputs"):
        undense.load(path)


def test_weights_that_the_module_wants_and_the_file_lacks(tmp_path):
    path = make_artifact(tmp_path / "a", "tvm", parameters=("weight", "absent")).path
    with pytest.raises(ArtifactError, match=r"weights\.safetensors does not hold what"):
        undense.load(path)


def test_a_failure_of_the_engine_is_an_error_of_undense(tmp_path):
    """Here the manifest has weights in the wrong order, which main refuses by their shapes."""
    path = make_artifact(tmp_path / "a", "tvm", parameters=("table", "weight")).path
    with pytest.raises(UndenseError, match="tvm failed: "):
        undense.load(path)(**sample())


@pytest.mark.parametrize("engine", ["tvm", "ort"])
def test_base_and_one_engine_are_enough(folder, engine):
    """Without torch, onnx, rich and the other engine, and with TVM's runtime alone."""
    absent = {"torch", "onnx", "onnx_ir", "onnxscript", "rich", "scipy", "ml_dtypes"}
    absent |= {"tvm"} if engine == "ort" else {"onnxruntime"}
    code = f"""
import sys
for name in {sorted(absent - ({"ml_dtypes"} if engine == "tvm" else set()))}:
    sys.modules[name] = None
import importlib.util, numpy as np
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {sorted(absent)} else find(name)
import warnings
warnings.simplefilter("ignore")
import undense
session = undense.load({str(folder)!r})
assert session.engine == {engine!r}
print(session(np.ones((2, 8), np.float32), np.array([0, 9]))[0].tolist())
"""
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    got = np.array(json.loads(done.stdout))
    want = expected(np.ones((2, 8), np.float32), np.array([0, 9]))[0]
    assert_close(got.astype(np.float32), want, reduction=IN_FEATURES + 1)
