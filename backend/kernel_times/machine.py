"""Whether this machine can time a target's kernels, and the cache that weights have to pass."""

from __future__ import annotations

import importlib.util

from ...passes.errors import MissingDependencyError, TargetError
from ...runtime import cuda_provider
from ...runtime.hardware import cpu_flags, last_cache_bytes
from ..package import check_toolchain
from ..target import Target

_OF_A_GPU = 128 * 2**20
"""Bytes: the last caches of today's GPUs hold that much or less."""


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
