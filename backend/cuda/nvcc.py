"""CUDA source to device code for several architectures, by the toolkit's own compiler."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ...passes.errors import LoweringError, MissingDependencyError, TargetError

_DEVICE = Path(__file__).parents[1] / "kernels" / "cuda" / "device"

EMULATED_HEADERS = (_DEVICE / "undense.cuh",)
"""Device functions that kernels call, but for those of inline PTX, which an emulation has its own
of."""

INTRINSICS = _DEVICE / "intrinsics.cuh"
"""Those of inline PTX."""

DEVICE_HEADERS = (INTRINSICS, *EMULATED_HEADERS)
"""All of them."""

_FLAGS = (
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    # Else ptxas stores a few registers to memory to fit one block more on a multiprocessor.
    "--ptxas-options=--register-usage-level=10",
)

LEAST_VERSION = (12, 4)
"""The first toolkit whose headers have what the kernels use."""

_INSTALL = "install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl"


@dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel for one architecture.

    Attributes:
        kernel: its name.
        architecture: as nvcc names it.
        registers: of a thread.
        shared_bytes: of a block, without what is given at launch.
        spilled_bytes: stored to local memory for want of registers.
        stack_bytes: of local memory of a thread.
        serialized: whether ptxas lets each product of a warpgroup wait for the one before.
    """

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    stack_bytes: int
    serialized: bool = False


@cache
def find_nvcc() -> Path:
    """The compiler on the path, in the toolkit's folder, or in a package of pip.

    Raises:
        MissingDependencyError: there is none; says what to install.
    """
    found = shutil.which("nvcc")
    if found is not None:
        return Path(found)
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    packages = [*site.getsitepackages(), *([p for p in sys.path if p.endswith("-packages")])]
    homes += [Path("/usr/local/cuda"), *(Path(folder) / "nvidia/cu13" for folder in packages)]
    for home in homes:
        if (home / "bin" / "nvcc").is_file():
            return home / "bin" / "nvcc"
    raise MissingDependencyError(
        f"target cuda needs nvcc; there is none on the path, under CUDA_HOME or in pip; {_INSTALL}"
    )


def check_nvcc(architectures: Sequence[str]) -> None:
    """Refuses to start long work without a compiler that can do it.

    Raises:
        MissingDependencyError: no nvcc, one that does not run, or an old one.
        TargetError: an architecture that it does not know.
    """
    if nvcc_version() < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        found = ".".join(map(str, nvcc_version()))
        raise MissingDependencyError(
            f"{find_nvcc()} is of CUDA {found} and target cuda needs {least}; {_INSTALL}"
        )
    known = _told("--list-gpu-code").split()
    unknown = [name for name in architectures if name.removesuffix("a") not in known]
    if known and unknown:
        raise TargetError(
            f"{find_nvcc()} knows no {', '.join(unknown)}: it knows {', '.join(known)}"
        )


@cache
def nvcc_version() -> tuple[int, int]:
    """Of the compiler's toolkit; (0, 0) where it does not tell.

    Raises:
        MissingDependencyError: no nvcc, or one that does not run.
    """
    fit = re.search(r"release (\d+)\.(\d+)", _told("--version"))
    return (int(fit[1]), int(fit[2])) if fit else (0, 0)


def _told(question: str) -> str:
    nvcc = find_nvcc()
    try:
        return subprocess.run(
            [nvcc, question], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingDependencyError(f"{nvcc} does not run ({error}); {_INSTALL}") from error


def device_code(source: str, architectures: Sequence[str]) -> bytes:
    """A fat binary: machine code for each architecture, and PTX that later ones compile at load.

    Raises:
        LoweringError: nvcc refuses the source.
    """
    return _compile(source, architectures, ())[0]


def resources(source: str, architectures: Sequence[str]) -> list[Resources]:
    """What each kernel of a source uses on each architecture."""
    return code_and_resources(source, architectures)[1]


def code_and_resources(source: str, architectures: Sequence[str]) -> tuple[bytes, list[Resources]]:
    """As `device_code`, with what each kernel uses on each architecture."""
    code, told = _compile(source, architectures, ("--resource-usage",))
    return code, _parsed(told)


def _compile(source: str, architectures: Sequence[str], flags: Sequence[str]) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory(prefix="undense-nvcc-") as folder:
        given, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        given.write_text(source, encoding="utf-8")
        command = [str(find_nvcc()), "--fatbin", *_FLAGS, *flags]
        for header in DEVICE_HEADERS:
            command += ["-include", str(header)]
        for name in architectures:
            command += ["-gencode", f"arch={name.replace('sm', 'compute')},code={name}"]
        last = [name for name in architectures if not name.endswith("a")]
        if last:
            virtual = last[-1].replace("sm", "compute")
            command += ["-gencode", f"arch={virtual},code={virtual}"]
        command += ["--threads", "0", "-o", str(made), str(given)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LoweringError(
                "nvcc refused the generated kernels: " + _first_error(done.stdout + done.stderr)
            )
        return made.read_bytes(), done.stdout + done.stderr


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[0]


def _parsed(told: str) -> list[Resources]:
    found = []
    serialized = re.findall(r"wgmma.* are serialized .* in the function '(\w+)'", told)
    kernel = architecture = ""
    stack = spilled = 0
    for line in told.splitlines():
        if fit := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel, architecture = fit[1], fit[2]
        elif fit := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            stack, spilled = int(fit[1]), int(fit[2])
        elif fit := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            shared_bytes = int(shared[1]) if shared else 0
            used = Resources(kernel, architecture, int(fit[1]), shared_bytes, spilled, stack)
            found.append(replace(used, serialized=kernel in serialized))
    return found
