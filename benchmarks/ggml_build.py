"""ggml's shared libraries, built for this machine from the sources in a PyPI package.

No wheel carries them with the instructions of this machine, and no package that is small. They are
built once, in half a minute, into the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from undense.passes.errors import MissingDependencyError
from undense.runtime.hardware import cpu_flags

from .data import Package, cache_folder

PACKAGE = Package("llama-cpp-python", "0.3.36")
_SOURCES = "vendor/llama.cpp/ggml/"
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_LLAMAFILE=ON",  # as llama.cpp has it
    "-DGGML_OPENMP=OFF",  # ggml's own threads
    "-DGGML_BUILD_TESTS=OFF",
    "-DGGML_BUILD_EXAMPLES=OFF",
)


def libraries() -> Path:
    """The folder of `libggml-base.so` and `libggml-cpu.so`.

    Raises:
        MissingDependencyError: the sources cannot be downloaded, or they cannot be built.
    """
    root = built_folder()
    if not root.is_dir():
        if not shutil.which("cmake"):
            raise MissingDependencyError(
                "ggml is built with cmake and none is on the path; pip install cmake, and a C++ "
                "compiler"
            )
        cache_folder().mkdir(parents=True, exist_ok=True)
        print(f"ggml: building it from {PACKAGE} into {root}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            built = _build(_unpacked(_downloaded(Path(scratch)), Path(scratch)), Path(scratch))
            built.rename(root)
    return root / "src"


def built_folder() -> Path:
    """Where the libraries are, or will be: each kind of CPU has its own."""
    flags = hashlib.sha256(" ".join(sorted(cpu_flags() or ())).encode()).hexdigest()[:8]
    return cache_folder() / f"ggml-{PACKAGE.name}-{PACKAGE.version}-{flags}"


def _downloaded(folder: Path) -> Path:
    """The source distribution; pip wants to read its metadata and so needs its build backend."""
    options = ["--no-deps", "--no-binary", PACKAGE.name, "--dest", str(folder)]
    _run([sys.executable, "-m", "pip", "download", "--quiet", *options, str(PACKAGE)],
         f"{PACKAGE} cannot be downloaded")  # fmt: skip
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _unpacked(archive: Path, folder: Path) -> Path:
    """The part of the archive that is ggml."""
    with tarfile.open(archive) as tar:
        members = [item for item in tar.getmembers() if f"/{_SOURCES}" in item.name]
        tar.extractall(folder, members=members, filter="data")
    (found,) = folder.glob(f"*/{_SOURCES}")
    # The package leaves out the template of a file that only an installation has.
    (found / "ggml.pc.in").touch()
    return found


def _build(sources: Path, folder: Path) -> Path:
    built = folder / "build"
    failed = f"ggml of {PACKAGE} cannot be built"
    _run(["cmake", "-S", str(sources), "-B", str(built), *_OPTIONS], failed)
    jobs = str(os.cpu_count() or 1)
    _run(["cmake", "--build", str(built), "--parallel", jobs], failed)
    return built


def _run(command: Sequence[str], failed: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise MissingDependencyError(f"{failed}: {lines[-1] if lines else 'no reason was given'}")
