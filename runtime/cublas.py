"""cuBLAS for modules that call it: NVIDIA's library found, and `cublas.so` of an artifact on it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import tvm_ffi

from ..passes.errors import ArtifactError, MissingDependencyError
from .artifact import CUBLAS, Artifact
from .library import last_line, library_path

_NAMES = ("libcublas.so.13", "libcublas.so.12")
_FOLDERS = ("nvidia/cu13/lib", "nvidia/cublas/lib")
"""Where packages of PyPI, those that torch needs among them, put it."""

_lock = threading.Lock()
_loaded: dict[str, Any] = {}


def cublas_module(artifact: Artifact) -> Any:
    """`cublas.so` of the artifact as a module of tvm-ffi, cuBLAS open.

    Equal libraries are loaded once, so that artifacts share the handles and memory of cuBLAS.

    Raises:
        ArtifactError: `cublas.so` cannot be loaded.
        MissingDependencyError: there is no cuBLAS.
    """
    digest = artifact.manifest.files[CUBLAS].sha256
    with _lock:
        if digest not in _loaded:
            path = library_path(artifact, CUBLAS)
            try:
                module = tvm_ffi.load_module(path)
            except (OSError, RuntimeError, ValueError) as error:
                raise ArtifactError(
                    f"{artifact.path / CUBLAS} cannot be loaded ({last_line(error)})"
                ) from error
            _open_cublas(module, artifact)
            _loaded[digest] = module
        return _loaded[digest]


def _open_cublas(module: Any, artifact: Artifact) -> None:
    """Has the module take the first cuBLAS there is: one loaded or installed, or a package's."""
    places = (Path(place) / folder for place in sys.path for folder in _FOLDERS)
    paths = [str(path) for place in places for name in _NAMES if (path := place / name).is_file()]
    causes = []
    for candidate in (*_NAMES, *paths):
        try:
            module["undense_cublas_open"](candidate)
            return
        except RuntimeError as error:
            causes.append(last_line(error))
    # What a package's library lacks says more than that the linker has none.
    raise MissingDependencyError(
        f"{artifact.path} computes products by cuBLAS, which cannot be loaded "
        f"({causes[-1] if paths else causes[0]}): pip install nvidia-cublas, or compile the model "
        "without -libs=cublas"
    )
