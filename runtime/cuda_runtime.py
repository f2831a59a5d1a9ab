"""TVM's runtime for CUDA: the libraries that it needs, the GPU, and whether the GPU is new enough.

That what is missing is named was tried on machines without a GPU, and the rest on an emulation.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import tvm
import tvm_ffi
from tvm.libinfo import package_lib_paths

from ..passes.errors import MissingDependencyError, TargetError

_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart.so.13"
_OWN = "libtvm_runtime_cuda.so"
_FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
"""Where packages of PyPI, torch's own among them, put the CUDA runtime."""

_ARCHITECTURE = re.compile(r"sm_(\d+)(a?)")


def cuda_device(architectures: Sequence[str], origin: str) -> tvm.runtime.Device:
    """The first GPU, with TVM's runtime for it loaded.

    Args:
        architectures: that there is code for; empty if that is not known.
        origin: of the code, for messages.

    Raises:
        MissingDependencyError: TVM or the machine lacks a library.
        TargetError: there is no driver or GPU, or the GPU is older than the code.
    """
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        _load()
    device = tvm.cuda(0)
    if not device.exist:
        raise TargetError(
            f"{origin}: there is no GPU here, or no driver of NVIDIA's for it (nvidia-smi tells): "
            "install the driver, or make a GPU visible (CUDA_VISIBLE_DEVICES, or the options of "
            "the container)"
        )
    version = str(device.compute_version)
    if architectures and not can_run(version, architectures):
        raise TargetError(
            f"{origin} holds code for {', '.join(architectures)} and the GPU here is of compute "
            f"capability {version}: compile the model for target 'cuda "
            f"-arch=sm_{version.replace('.', '')}'"
        )
    return device


def can_run(version: str, architectures: Sequence[str]) -> bool:
    """Whether a GPU of compute capability `version` ("8.6") runs code for these architectures.

    Machine code runs on GPUs of the same major version that are not older, the PTX of the last
    architecture on all that are not older; what ends in `a` runs on that very version.
    """
    major, _, minor = version.partition(".")
    here = 10 * int(major) + int(minor)
    found = [_ARCHITECTURE.fullmatch(name) for name in architectures]
    known = [(int(match[1]), bool(match[2])) for match in found if match is not None]
    for number, exact in known:
        if here == number or (not exact and here > number and here // 10 == number // 10):
            return True
    virtual = [number for number, exact in known if not exact]
    return any(here >= number for number in virtual[-1:])


def load_cuda_libraries() -> None:
    """Loads the driver and the CUDA runtime, from wherever they are, for libraries that need them.

    Raises:
        MissingDependencyError: no CUDA runtime.
        TargetError: no driver.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise TargetError(
            f"this machine has no driver for NVIDIA's GPUs ({error}): install it, or choose target "
            "llvm or ort-cpu"
        ) from error
    try:
        ctypes.CDLL(_RUNTIME)  # one that is loaded already, by torch for example, is found too
        return
    except OSError as error:
        missing = error
    places = [Path(place) / folder / _RUNTIME for place in sys.path for folder in _FOLDERS]
    for path in places:
        if path.is_file():
            ctypes.CDLL(str(path))
            return
    raise MissingDependencyError(
        f"TVM needs the CUDA runtime and there is none ({missing}): pip install nvidia-cuda-runtime"
    ) from missing


def _load() -> None:
    """TVM's own part, which `import tvm` leaves out where a library is missing."""
    paths = [path for folder in package_lib_paths() if (path := Path(folder) / _OWN).is_file()]
    if not paths:
        raise MissingDependencyError(
            f"this TVM comes without {_OWN}: install apache-tvm from PyPI "
            "(pip install 'undense[cuda]')"
        )
    load_cuda_libraries()
    try:
        ctypes.CDLL(str(paths[0]))
    except OSError as error:
        raise MissingDependencyError(
            f"{_OWN} of TVM cannot be loaded ({error}): pip install nvidia-cuda-runtime"
        ) from error
