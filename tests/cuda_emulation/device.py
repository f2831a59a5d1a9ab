"""Makes TVM find a CUDA device in this process, and compile for it."""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cuda_emulation.kernels import compile
from cuda_emulation.libraries import driver_library, runtime_library
from cuda_emulation.toolchain import EmulationUnavailable

TARGET = {"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm", "mcpu": "x86-64-v2"}}
_CALLBACK = "tvm_callback_cuda_compile"
_ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}


@functools.cache
def load() -> ctypes.CDLL:
    """Loads the emulated CUDA, and TVM's runtime for CUDA on it; returns the driver.

    `import tvm` tries that runtime too, and goes on without it where there is no driver.
    """
    import tvm
    from tvm.libinfo import package_lib_paths

    if tvm.cuda(0).exist:
        raise EmulationUnavailable("this process has a CUDA device; the emulation is for none")
    driver = ctypes.CDLL(str(driver_library()), ctypes.RTLD_LOCAL)
    ctypes.CDLL(str(runtime_library()), ctypes.RTLD_LOCAL)
    name = "libtvm_runtime_cuda.so"
    paths = [folder / name for folder in package_lib_paths() if (folder / name).is_file()]
    if not paths:
        raise EmulationUnavailable(f"this TVM comes without {name}; install apache-tvm from PyPI")
    ctypes.CDLL(str(paths[0]), ctypes.RTLD_LOCAL)
    if not tvm.cuda(0).exist:
        raise EmulationUnavailable("TVM does not see the emulated CUDA device")
    return driver


@contextmanager
def emulated(order: str = "forward", headers: Sequence[Path] = ()) -> Iterator[None]:
    """While it lasts, TVM compiles CUDA for the emulated device, and its threads run in `order`.

    Args:
        order: `forward`, `backward`, or `shuffled:SEED`, for threads that could run at once.
        headers: what generated kernels include beside CUDA's headers and the emulated functions.
    """
    import tvm_ffi

    set_order = load().cudaEmulationSetOrder
    before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(
        _CALLBACK, lambda source: compile(source, headers), override=True
    )
    kind, _, seed = order.partition(":")
    set_order(_ORDERS[kind], zlib.crc32(seed.encode()))
    try:
        yield
    finally:
        set_order(_ORDERS["forward"], 0)
        if before is None:
            tvm_ffi.remove_global_func(_CALLBACK)
        else:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)
