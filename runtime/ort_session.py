"""Runs the ONNX file of an artifact with stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..passes.errors import ArtifactError, TargetError, UndenseError
from .artifact import MODEL, Artifact, Engine
from .session import Session

_ERRORS_ONLY = 3


class OrtSession(Session):
    """`model.onnx` on the CPU; external data is mapped into memory by ONNX Runtime."""

    engine: ClassVar[Engine] = "ort"

    def __init__(self, artifact: Artifact, num_threads: int) -> None:
        super().__init__(artifact, num_threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        path = artifact.file(MODEL)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise ArtifactError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({_first(error)}); "
                f"the artifact was made with {artifact.manifest.versions.get('onnxruntime')}"
            ) from error
        if self._session.get_providers() != ["CPUExecutionProvider"]:
            raise TargetError(f"{path}: onnxruntime chose {self._session.get_providers()}")
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

    def _execute(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        names = (info.name for info in self.inputs)
        try:
            results: list[Any] = self._session.run(
                self._output_names, dict(zip(names, arrays, strict=True))
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise UndenseError(f"{self.path}: onnxruntime failed: {_first(error)}") from error
        return results


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
