"""Modules of TVM on a GPU: on the emulated one, but for the tests that are marked `gpu`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifacts import IN_FEATURES, expected, make_artifact, module_bytes, sample
from cuda_emulation import emulated
from helpers import assert_close
from undense.passes.errors import InputError, MissingDependencyError, TargetError
from undense.runtime import cuda_runtime
from undense.runtime.bench import bench
from undense.runtime.session import Session, load
from undense.runtime.tvm_cuda import TURNS
from undense.runtime.verify import verify


@pytest.fixture(scope="module")
def folder(cuda_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with emulated():
        artifact = make_artifact(
            tmp_path_factory.mktemp("cuda") / "tiny.undense", "tvm", onnx=False, target="cuda",
            device="cuda", architectures=("sm_80", "sm_90"), module=module_bytes("cuda"),
        )  # fmt: skip
    return artifact.path


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return load(folder)


def assert_right(results: Any, inputs: dict[str, np.ndarray]) -> None:
    for got, want in zip(results, expected(**inputs), strict=True):
        assert_close(got, want, reduction=IN_FEATURES + 1)


@pytest.mark.parametrize("length", [1, 3, 16])
def test_arrays_go_there_and_back(session: Session, length: int) -> None:
    inputs = sample(length)
    assert session.device == "cuda"
    results = session(**inputs)
    assert_right(results, inputs)
    assert all(isinstance(result, np.ndarray) and result.flags.writeable for result in results)


def test_tensors_of_the_host_come_back_as_such(session: Session) -> None:
    inputs = sample()
    results = session(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert all(result.device.type == "cpu" for result in results)
    assert_right([result.numpy() for result in results], inputs)


def test_any_memory_layout(session: Session) -> None:
    inputs = sample()
    assert_right(session(np.asfortranarray(inputs["x"]), inputs["ids"]), inputs)
    assert_right(session(np.repeat(inputs["x"], 2, axis=1)[:, ::2], inputs["ids"]), inputs)


def test_wrong_indices_do_not_reach_the_gpu(session: Session) -> None:
    inputs = sample()
    with pytest.raises(InputError, match="expected indices from 0 to 9, got 10"):
        session(inputs["x"], np.array([0, 10, 1]))


def test_memory_for_arrays_is_taken_once_for_a_shape(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undense.runtime import tvm_cuda

    session, taken = load(folder), []
    empty = tvm_cuda.tvm.runtime.empty

    def noted(shape: Any, *rest: Any) -> Any:
        taken.append(tuple(shape))
        return empty(shape, *rest)

    monkeypatch.setattr(tvm_cuda.tvm.runtime, "empty", noted)
    found = []
    for seed, length in enumerate((5, 5, 5, 3, 5, 5)):
        inputs = sample(length, seed)
        found.append((session(**inputs), inputs))
    assert taken == [shape for length in (5, 3, 5) for shape in ((length, IN_FEATURES), (length,))]
    for results, inputs in found:
        assert_right(results, inputs)


def test_threads_take_turns(session: Session) -> None:
    found: dict[int, Any] = {}

    def call(seed: int) -> None:
        found[seed] = [session(**sample(5, seed)) for _ in range(4)]

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        for results in found[seed]:
            assert_right(results, sample(5, seed))


def test_another_stream_waits_for_the_last(
    cuda_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvm_ffi
    from undense.runtime import tvm_cuda

    waits = []
    monkeypatch.setattr(tvm_cuda, "_wait_for", lambda _, last, now: waits.append((last, now)))
    turns = tvm_cuda.Turns()
    stream = int(cuda_device.create_raw_stream())
    for number in (0, 0, stream, stream, 0):
        with turns.on(cuda_device, number):
            assert int(tvm_ffi.get_raw_stream(cuda_device) or 0) == number
    assert waits == [(0, stream), (stream, 0)]
    assert int(tvm_ffi.get_raw_stream(cuda_device) or 0) == 0


def test_a_failed_call_ends_its_turn(cuda_device: Any) -> None:
    with contextlib.suppress(ValueError), TURNS.on(cuda_device, 0):
        raise ValueError
    with TURNS.on(cuda_device, 0):
        pass


def test_verify_and_bench(session: Session) -> None:
    assert verify(session).holds
    found = bench(session, session, sample(), repeats=2, min_time=0)
    assert found["device"] == "cuda"
    assert found["artifact"]["median_ms"] > 0


def test_each_function_is_finished_before_the_next_is_timed(session: Session) -> None:
    runs = session.trace(sample(), 2)
    assert len(runs) == 2
    assert all(any(not call.builtin for call in calls) for calls in runs)


def test_a_gpu_older_than_the_code_is_refused(cuda_device: Any, tmp_path: Path) -> None:
    artifact = make_artifact(
        tmp_path / "new.undense", "tvm", onnx=False, device="cuda", architectures=("sm_100",)
    )
    with pytest.raises(TargetError, match=r"holds code for sm_100 and the GPU here .* 9\.0"):
        load(artifact.path)


@pytest.mark.parametrize(
    ("version", "architectures", "runs"),
    [
        ("8.0", ("sm_80", "sm_90"), True),
        ("8.6", ("sm_80", "sm_90"), True),
        ("8.6", ("sm_89", "sm_90"), False),
        ("8.0", ("sm_90",), False),
        ("7.5", ("sm_80",), False),
        ("10.0", ("sm_80", "sm_90"), True),
        ("12.0", ("sm_80", "sm_90a"), True),
        ("12.0", ("sm_90a",), False),
        ("9.0", ("sm_90a",), True),
    ],
)
def test_which_gpus_run_which_code(
    version: str, architectures: tuple[str, ...], runs: bool
) -> None:
    assert cuda_runtime.can_run(version, architectures) == runs


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Libraries of which those named cannot be loaded by their names."""
    loaded: list[str] = []

    def lacking(*missing: str) -> list[str]:
        def load_library(name: str) -> object:
            if name in missing:
                raise OSError(f"{name}: cannot open shared object file")
            loaded.append(name)
            return object()

        monkeypatch.setattr(cuda_runtime.ctypes, "CDLL", load_library)
        monkeypatch.setattr(cuda_runtime.sys, "path", [str(tmp_path)])
        return loaded

    return lacking


def test_missing_driver_is_named(without: Any) -> None:
    without("libcuda.so.1")
    with pytest.raises(TargetError, match=r"no driver for NVIDIA's GPUs \(libcuda"):
        cuda_runtime.load_cuda_libraries()


def test_missing_cuda_runtime_is_named(without: Any) -> None:
    without("libcudart.so.13")
    with pytest.raises(MissingDependencyError, match="pip install nvidia-cuda-runtime"):
        cuda_runtime.load_cuda_libraries()


def test_cuda_runtime_of_a_package_is_found(without: Any, tmp_path: Path) -> None:
    loaded = without("libcudart.so.13")
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    cuda_runtime.load_cuda_libraries()
    assert loaded == ["libcuda.so.1", str(library)]


class _OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


def test_tensors_that_kernels_cannot_read_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from undense.runtime import tvm_cuda

    monkeypatch.setattr(tvm_cuda.tvm.runtime, "from_dlpack", lambda tensor: tensor)
    memory = torch.arange(64.0)
    aligned = memory[(-memory.data_ptr() // 4) % 16 :][:32].as_subclass(_OnGpu)
    assert tvm_cuda.to_device(aligned, None).data_ptr() == aligned.data_ptr()
    for given in (aligned[1:], aligned.reshape(4, 8).T):
        found = tvm_cuda.to_device(given, None)
        assert found.data_ptr() % 64 == 0
        assert found.is_contiguous()
        assert torch.equal(found, given)


@pytest.mark.gpu
def test_tensors_of_a_real_gpu_are_read_and_returned_there(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    from undense.backend.cuda.module import cuda_modules

    architectures = ("sm_80", "sm_90")
    with cuda_modules(architectures):
        artifact = make_artifact(
            tmp_path / "tiny.undense", "tvm", onnx=False, target="cuda", device="cuda",
            architectures=architectures, module=module_bytes("cuda"),
        )  # fmt: skip
    session, inputs = load(artifact.path), sample()
    tensors = {name: torch.from_numpy(value).cuda() for name, value in inputs.items()}
    for given in (tensors, {"x": tensors["x"], "ids": inputs["ids"]}):
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                results = session(**given)
            stream.synchronize()
            assert all(result.device.type == "cuda" for result in results)
            assert_right([result.cpu().numpy() for result in results], inputs)
