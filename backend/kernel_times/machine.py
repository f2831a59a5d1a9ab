"""Whether this machine can time a target's kernels, its name, and the cache that weights pass.

What concerns GPUs follows the documentation of NVIDIA's driver; it was not run on one.
"""

from __future__ import annotations

import ctypes
import importlib.util

from ...passes.errors import MissingDependencyError, TargetError
from ...runtime import cuda_provider
from ...runtime.hardware import cpu_flags, last_cache_bytes, machine
from ..package import check_toolchain
from ..target import Target

_OF_A_GPU = 128 * 2**20
"""Bytes: the last caches of today's GPUs hold that much or less."""

_LONGEST_NAME = 256


def check_measurable(target: Target) -> None:
    """Refuses a target whose kernels do not run here.

    Raises:
        TargetError: this machine lacks the GPU, or instruction sets that code for it uses.
        MissingDependencyError: a package or tool is missing; says what to install.
    """
    try:
        _check_device(target)
    except (MissingDependencyError, TargetError) as error:
        raise type(error)(
            f"target {target}: latency cannot be measured on this machine: {error}"
        ) from error
    check_toolchain(target)


def cache_bytes(target: Target) -> int:
    """Bytes of the last cache before the memory of what a target runs on."""
    return _OF_A_GPU if target.device == "cuda" else last_cache_bytes()


def machine_name(target: Target) -> str:
    """What its maker calls the CPU, and behind it the GPU for a target that runs on one."""
    name = str(machine()["cpu"])
    return f"{name}, {_gpu_name()}" if target.device == "cuda" else name


def _gpu_name() -> str:
    """Of the first GPU, as the driver tells it."""
    driver, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
    name = ctypes.create_string_buffer(_LONGEST_NAME)
    if driver.cuInit(0) or driver.cuDeviceGetName(name, _LONGEST_NAME, device):
        raise TargetError("NVIDIA's driver does not tell the name of the GPU: mend that")
    return name.value.decode()


def _check_device(target: Target) -> None:
    if target.engine == "ort":
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingDependencyError("onnxruntime is missing: pip install 'undense[cpu]'")
        if target.device == "cuda" and (obstacle := cuda_provider.obstacle()) is not None:
            raise obstacle
        return
    if target.device == "cuda":
        from ...runtime.cuda_runtime import cuda_device

        cuda_device(target.architectures, str(target))
        return
    missing = set(target.cpu_features()) - (cpu_flags() or set())
    if missing:
        raise TargetError(
            f"code for it needs {', '.join(sorted(missing))}, which this processor lacks; measure "
            "on one that has it, or choose target llvm"
        )
