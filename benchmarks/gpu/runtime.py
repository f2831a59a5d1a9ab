"""TVM's runtime for the GPU host: the package without compiler and sources, and what it imports."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from undense.passes.errors import MissingDependencyError

_LEFT_OUT = (
    *("include", "src", "3rdparty", "web", "cmake", "lib64", "__pycache__"),
    "libtvm_compiler.so",
)
_WHEELS = ("apache-tvm-ffi", "ml_dtypes", "typing_extensions")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")


def write_runtime(folder: Path, python: str) -> None:
    """Fills a folder with what `import tvm` needs beside numpy under a version of Python.

    Raises:
        MissingDependencyError: the wheels for that Python cannot be had.
    """
    import tvm

    shutil.copytree(
        Path(tvm.__file__).parent, folder / "tvm", ignore=shutil.ignore_patterns(*_LEFT_OUT)
    )
    with tempfile.TemporaryDirectory(prefix="undense-wheels-") as wheels:
        for name in _WHEELS:
            _download(f"{name}=={importlib.metadata.version(name)}", python, Path(wheels))
        for wheel in sorted(Path(wheels).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    for part in ("include", "src", "3rdparty"):
        shutil.rmtree(folder / "tvm_ffi" / part, ignore_errors=True)


def versions() -> dict[str, str]:
    """Of the packages in the runtime."""
    return {name: importlib.metadata.version(name) for name in ("apache-tvm", *_WHEELS)}


def _download(requirement: str, python: str, folder: Path) -> None:
    command: Sequence[str] = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--python-version", python, "--dest", str(folder)),
        *(word for platform in _PLATFORMS for word in ("--platform", platform)),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise MissingDependencyError(
            f"no wheel of {requirement} for Python {python} ({lines[-1]}); "
            "name the GPU host's version with --python"
        )
