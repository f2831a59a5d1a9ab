"""Finds g++ and CUDA's headers, and keeps what they build in a folder of the user's."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
# Those that the emulation includes, and two that they include from packages of their own.
_HEADERS = (
    *("cuda.h", "cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "math_constants.h"),
    *("crt/host_defines.h", "nv/target"),
)
# The first that fills variables which nothing was assigned to.
_OLDEST_COMPILER = 12


class EmulationUnavailable(RuntimeError):
    """This machine cannot emulate CUDA; the message says what is missing."""


@functools.cache
def compiler() -> str:
    """The path of g++."""
    if platform.machine() != "x86_64":
        raise EmulationUnavailable(
            f"the emulation of CUDA switches threads in x86-64 code, and this is a "
            f"{platform.machine()}; run these tests on x86-64"
        )
    found = shutil.which("g++")
    if found is None:
        raise EmulationUnavailable("the emulation of CUDA is built by g++; install it")
    version = subprocess.run([found, "-dumpversion"], capture_output=True, text=True, check=True)
    if int(version.stdout.split(".")[0]) < _OLDEST_COMPILER:
        raise EmulationUnavailable(
            f"{found} is version {version.stdout.strip()}, and the emulation of CUDA is built by "
            f"g++ {_OLDEST_COMPILER} or later; install that"
        )
    return found


@functools.cache
def cuda_headers() -> tuple[Path, ...]:
    """The include folders of a CUDA toolkit: a named one, nvcc's, an installed one, or PyPI's."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        homes.append(str(Path(nvcc).resolve().parent.parent))
    homes += ["/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]
    homes += [f"{folder}/nvidia/cu13" for folder in sys.path]
    for home in homes:
        folders = (Path(home) / "include", Path(home) / "include/cccl")
        if all(any((folder / name).is_file() for folder in folders) for name in _HEADERS):
            return folders
    raise EmulationUnavailable(
        f"no CUDA toolkit with {', '.join(_HEADERS)} in its include folder: not in CUDA_HOME, "
        "not beside nvcc, not in /usr/local/cuda; install the CUDA toolkit, or "
        "nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl from PyPI"
    )


@functools.cache
def cache_folder() -> Path:
    """Where built files are kept: a folder of the user's alone among the temporary ones."""
    folder = Path(tempfile.gettempdir()) / f"cuda-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmulationUnavailable(
            f"{folder} belongs to another user; set TMPDIR to a folder of yours"
        )
    return folder


@functools.cache
def fingerprint() -> str:
    """What all built files depend on: the compiler, CUDA's headers, and this folder's sources."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    headers = [folder / name for folder in cuda_headers() for name in _HEADERS]
    stamps = [f"{header} {header.stat().st_size}" for header in headers if header.is_file()]
    sources = sorted(path for path in FOLDER.iterdir() if path.suffix in (".h", ".cpp"))
    parts = [version, "\n".join(stamps).encode()]
    return content_hash(*parts, *(path.read_bytes() for path in sources))


def include_flags() -> tuple[str, ...]:
    """What tells g++ where CUDA's headers are."""
    return tuple(f"-I{folder}" for folder in cuda_headers())


def content_hash(*parts: bytes) -> str:
    """Names a file after what it is built from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:20]


def built(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, built unless it is there.

    Built under another name and then renamed: another process sees the whole file or none.
    """
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch) / path.name
            build(unfinished)
            unfinished.replace(path)
    return path


def run_compiler(arguments: Sequence[str | Path], source: str | None = None) -> None:
    """Runs g++; what it says against the source is the error's message."""
    command = [compiler(), *map(str, arguments)]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:6000]}")
