"""`load` an artifact and call it: torch in, torch out; numpy in, numpy out."""

from __future__ import annotations

import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import ArtifactError, MissingDependencyError, TargetError
from .artifact import Artifact, Device, Engine, Manifest, TensorInfo, open_artifact
from .calls import Call
from .device import resolve
from .hardware import usable_cores
from .model import Model
from .signature import bind, check

_MODULES: dict[Engine, str] = {"ort": "onnxruntime", "tvm": "tvm"}
_PACKAGES: dict[Engine, str] = {"ort": "onnxruntime", "tvm": "apache-tvm"}


class Session(Model):
    """A loaded artifact: call it with arrays or tensors.

    Inputs are checked first; calls from several threads at once are safe.

    Attributes:
        engine: that runs it.
        artifact: the folder it was loaded from.
        num_threads: that one call may use.
        device: it runs on.
        check_indices: whether index tensors on a GPU are looked at before a call.
    """

    engine: Engine

    def __init__(self, artifact: Artifact, num_threads: int, device: Device = "cpu") -> None:
        self.artifact = artifact
        self.num_threads = num_threads
        self.device = device
        self.check_indices = True

    def __repr__(self) -> str:
        """Where it lies, what it takes and gives, and what runs it."""
        given, results = (", ".join(map(str, infos)) for infos in (self.inputs, self.outputs))
        return (
            f"<{type(self).__name__} {self.path}: ({given}) -> ({results}), "
            f"{self.engine} on {self.device}>"
        )

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.artifact.manifest

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return self.artifact.path

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in positional order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs in the order of the results."""
        return self.manifest.outputs

    @property
    def dimension_bounds(self) -> Mapping[str, tuple[int, int]]:
        """The lengths that dynamic dimensions may have."""
        return self.manifest.dimension_bounds

    @property
    def report(self) -> dict[str, Any]:
        """What was replaced by what, why, at what cost; `bytes.folder` is the whole artifact."""
        return self.artifact.report

    def trace(self, inputs: Mapping[str, Any], runs: int) -> list[list[Call]]:
        """The calls of functions within each of several runs on inputs by name.

        Raises:
            InputError: inputs that do not fit the signature.
        """
        values = bind(self.inputs, (), inputs)
        arrays = check(self.inputs, self.dimension_bounds, values)
        return self._trace([arrays[info.name] for info in self.inputs], runs)

    def synchronize(self) -> None:  # nothing is right for CPUs
        """Waits until the device has finished what was asked of it; a CPU has with each call."""

    def save(self, path: str | Path) -> None:
        """Copies the artifact to `path`, whole or not at all; an artifact there is replaced.

        Raises:
            ArtifactError: something that is no artifact stands at `path`.
        """
        self.artifact.save(path)

    @abstractmethod
    def _trace(self, arrays: Sequence[NDArray[np.generic]], runs: int) -> list[list[Call]]:
        """Runs checked inputs, in order, with the engine's instruments on."""


def load(
    path: str | Path,
    device: str | None = None,
    engine: Engine | None = None,
    num_threads: int | None = None,
    check_indices: bool = True,
) -> Session:
    """Opens the artifact at `path`, after checking the hash of each of its files.

    Loading executes the code in `module.so`, `kernels.so` or `cublas.so`: load only what you trust,
    hashes are no signature.

    Args:
        path: the artifact's folder.
        device: "cpu" or "cuda"; by default the one the artifact was made for.
        engine: "tvm" or "ort"; by default the one the artifact was made for, or the other one
            if only that can run here, with a warning.
        num_threads: for one call; by default the number of physical cores.
        check_indices: look at index tensors that lie on a GPU: a wrong index would read foreign
            memory there. Each such call then waits until the GPU has come to them; False is for
            who has checked them.

    Raises:
        ArtifactError: no artifact, a damaged one, or one without the files of `engine`.
        MissingDependencyError: the engine is not installed.
        TargetError: a device that the artifact or this machine does not support, or a module built
            for other machines.
    """
    if engine is not None and engine not in _PACKAGES:
        raise TargetError(f"engine {engine!r} is not known; there are 'tvm' and 'ort'")
    if num_threads is not None and num_threads < 1:
        raise TargetError(f"a call needs at least 1 thread, got {num_threads}")
    artifact = open_artifact(path)
    chosen = _choose(artifact, engine)
    threads = usable_cores() if num_threads is None else num_threads
    session = _session_class(chosen)(artifact, threads, resolve(artifact, device, chosen))
    session.check_indices = check_indices
    return session


def _session_class(engine: Engine) -> Callable[[Artifact, int, Device], Session]:
    try:
        if engine == "tvm":
            from .tvm_session import TvmSession

            return TvmSession
        from .ort_session import OrtSession

        return OrtSession
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{_PACKAGES[engine]} is installed and cannot be imported ({error}): install it again"
        ) from error


def _choose(artifact: Artifact, wanted: Engine | None) -> Engine:
    there = artifact.engines
    if wanted is not None and wanted not in there:
        raise ArtifactError(
            f"{artifact.path} holds no files for engine {wanted!r}, only for "
            f"{', '.join(there) or 'none'}; compile the model for that target"
        )
    if not there:
        raise ArtifactError(f"{artifact.path} holds no module to run; build the artifact again")
    candidates = there if wanted is None else (wanted,)
    installed = [name for name in candidates if importlib.util.find_spec(_MODULES[name])]
    if not installed:
        names = " or ".join(_PACKAGES[name] for name in candidates)
        raise MissingDependencyError(
            f"{artifact.path} needs an engine to run: install {names} "
            f"(pip install 'undense[{artifact.manifest.device}]')"
        )
    first = wanted or artifact.manifest.engine
    if installed[0] != first and first in there:
        warnings.warn(
            f"{artifact.path} was made for {_PACKAGES[first]}, which is not installed; "
            f"it runs on {_PACKAGES[installed[0]]} instead",
            stacklevel=3,
        )
    return installed[0]
