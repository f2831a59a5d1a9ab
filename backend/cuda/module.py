"""TVM's CUDA modules with device code of ours in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from .driver import load_cuda_modules
from .nvcc import check_nvcc, device_code

_CALLBACK = "tvm_callback_cuda_compile"

DeviceCode = Callable[[str, Sequence[str]], bytes]
"""From CUDA source and architectures to what the driver loads."""

_device_code: ContextVar[DeviceCode] = ContextVar("device_code", default=device_code)


@contextmanager
def device_code_by(function: DeviceCode) -> Iterator[None]:
    """Modules that are built meanwhile get their device code from `function` instead of nvcc.

    A host emulation of kernels comes in here.
    """
    token = _device_code.set(function)
    try:
        yield
    finally:
        _device_code.reset(token)


def check_device_compiler(architectures: Sequence[str]) -> None:
    """Refuses to start long work that would end without device code.

    Raises:
        MissingDependencyError: no nvcc, or one that will not do.
        TargetError: an architecture that it does not know.
    """
    if _device_code.get() is device_code:
        check_nvcc(architectures)


@contextmanager
def cuda_modules(architectures: Sequence[str]) -> Iterator[None]:
    """CUDA modules that TVM builds meanwhile hold device code for these architectures.

    Raises:
        MissingDependencyError: this TVM cannot make CUDA modules.
    """
    import tvm_ffi

    load_cuda_modules()
    compile_source = _device_code.get()
    before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(
        _CALLBACK, lambda source: compile_source(source, architectures), override=True
    )
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.remove_global_func(_CALLBACK)
        else:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)
