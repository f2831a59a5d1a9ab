"""Runs the ONNX file of an artifact with ONNX Runtime, and with the kernels beside it.

What concerns GPUs follows ONNX Runtime's documentation; it was not run on one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..passes.errors import ArtifactError, TargetError, UndenseError
from . import cuda_provider
from .artifact import KERNELS, MODEL, Artifact, Device, Engine
from .calls import Call, shapes
from .gpu_tensors import checked, is_on_gpu
from .library import check_processor, library_path
from .ort_binding import run_bound, to_torch_without_copy
from .session import Session
from .tensors import is_torch, to_torch

_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_SIDES = ("input", "output")
THREADS_ENTRY = "undense.num_threads"
"""How many threads `kernels.so` uses, which it reads when it is registered."""


class OrtSession(Session):
    """`model.onnx` on the CPU or a GPU; external data is mapped into memory by ONNX Runtime.

    On the CPU the operators of `kernels.so`, if the artifact has it, take the place of the
    functions that `model.onnx` holds for them. On a GPU, torch tensors that lie there are read and
    returned where they are; everything else is copied there and back.
    """

    engine: Engine = "ort"

    def __init__(self, artifact: Artifact, num_threads: int, device: Device = "cpu") -> None:
        super().__init__(artifact, num_threads, device)
        self._session = _load(artifact, _options(num_threads), device)
        self._output_names = [info.name for info in self.outputs]
        self._check_names()

    def _check_names(self) -> None:
        inputs = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if inputs != {info.name for info in self.inputs} or not outputs.issuperset(
            self._output_names
        ):
            raise ArtifactError(
                f"{self.path}: {MODEL} and the manifest disagree on inputs or outputs; "
                "build the artifact again"
            )

    def _results(self, values: Mapping[str, Any]) -> Sequence[Any]:
        if self.device == "cpu":
            return super()._results(values)
        bounds = self.manifest.dimension_bounds
        inputs = checked(self.inputs, bounds, values, check_indices=self.check_indices)
        given = dict(zip((info.name for info in self.inputs), inputs, strict=True))
        results = self._run(lambda: run_bound(self._session, given, self._output_names, "cuda"))
        if any(map(is_on_gpu, values.values())):
            return [to_torch_without_copy(result) for result in results]
        copies = [result.numpy() for result in results]
        if any(map(is_torch, values.values())):
            return [to_torch(array) for array in copies]
        return copies

    def _execute(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        names = (info.name for info in self.inputs)
        feeds = dict(zip(names, arrays, strict=True))
        return self._run(lambda: self._session.run(self._output_names, feeds))

    def _run(self, call: Callable[[], list[Any]]) -> list[Any]:
        try:
            return call()
        except Exception as error:  # its exceptions share no base but Exception
            raise UndenseError(f"{self.path}: onnxruntime failed: {_first(error)}") from error

    def _trace(self, arrays: Sequence[NDArray[np.generic]], runs: int) -> list[list[Call]]:
        names = (info.name for info in self.inputs)
        feeds = dict(zip(names, arrays, strict=True))
        with tempfile.TemporaryDirectory(prefix="undense-profile-") as folder:
            options = _options(self.num_threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "run")
            session = _load(self.artifact, options, self.device)
            for _ in range(1 + runs):
                session.run(self._output_names, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _calls(events)[1:]


def _calls(events: Sequence[Mapping[str, Any]]) -> list[list[Call]]:
    """The operators of each run, out of the events of ONNX Runtime's profiler."""
    runs: list[list[Call]] = []
    calls: list[Call] = []
    for event in events:
        if event["name"] == "model_run":
            runs.append(calls)
            calls = []
        elif event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            told = event["args"]
            given, (output, *_) = (_shapes(told[f"{side}_type_shape"]) for side in _SIDES)
            calls.append(Call(told["op_name"], shapes(given, output), 1e-6 * event["dur"]))
    return runs


def _shapes(types: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    """Of `[{"float": [3, 96]}, ...]`; a scalar where an operator has no output."""
    return [shape for entry in types for shape in entry.values()] or [()]


def _options(num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return options


def _load(artifact: Artifact, options: Any, device: Device) -> Any:
    path = artifact.file(MODEL)
    if device == "cuda":
        _check_cuda(path)
    elif artifact.manifest.kernels is not None:
        _register(artifact, options)
    providers = [cuda_provider.WITH_OPTIONS, _CPU] if device == "cuda" else [_CPU]
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=False
        )
    except Exception as error:  # its exceptions share no base but Exception
        if "CUDA" in str(error):
            raise TargetError(
                f"{path}: onnxruntime cannot use the GPU ({_first(error)}); mend that, or load it "
                "with device cpu"
            ) from error
        raise ArtifactError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({_first(error)}); "
            f"the artifact was made with {artifact.manifest.versions.get('onnxruntime')}"
        ) from error
    wanted = cuda_provider.NAME if device == "cuda" else _CPU
    if session.get_providers()[0] != wanted:
        raise TargetError(
            f"{path}: onnxruntime fell back from {wanted} to {session.get_providers()[0]}; what it "
            "logged says why, and device cpu runs it there without a complaint"
        )
    return session


def _check_cuda(path: Path) -> None:
    """Without this ONNX Runtime would log why it cannot use the GPU, and run on the CPU."""
    obstacle = cuda_provider.obstacle()
    if obstacle is not None:
        raise type(obstacle)(f"{path}: {obstacle}, or load it with device cpu")


def _register(artifact: Artifact, options: Any) -> None:
    check_processor(
        artifact, f"compile the model again, or run {MODEL} in onnxruntime without {KERNELS}"
    )
    options.add_session_config_entry(THREADS_ENTRY, str(options.intra_op_num_threads))
    try:
        options.register_custom_ops_library(library_path(artifact, KERNELS))
    except Exception as error:  # its exceptions share no base but Exception
        raise ArtifactError(
            f"{artifact.file(KERNELS)}: onnxruntime {onnxruntime.__version__} cannot load it "
            f"({_first(error)}); the artifact was made with "
            f"{artifact.manifest.versions.get('onnxruntime')}"
        ) from error


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
