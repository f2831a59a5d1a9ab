"""Makes TVM find a CUDA device in this process, and compile for it."""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cuda_emulation.kernels import compile
from cuda_emulation.libraries import driver_library, runtime_library, tvm_runtime_library
from cuda_emulation.toolchain import EmulationUnavailable

TARGET = {"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm", "mcpu": "x86-64-v2"}}
_CALLBACK = "tvm_callback_cuda_compile"
_CREATE = "ffi.Module.create.cuda"
_ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
# Order, seed and seconds of each `emulated` that lasts, beneath them those of the driver itself.
_settings = [(_ORDERS["forward"], 0, 120)]


@functools.cache
def load() -> ctypes.CDLL:
    """Loads the emulated CUDA, and TVM's runtime for CUDA on it; returns the driver.

    `import tvm` tries that runtime too, and goes on without it where there is no driver.

    Raises:
        EmulationUnavailable: there is a real device, or no compiler for the emulated one.
        RuntimeError: this process has TVM's runtime for CUDA, which cannot be replaced.
    """
    import tvm
    import tvm_ffi

    if tvm.cuda(0).exist:
        raise EmulationUnavailable("this process has a CUDA device; the emulation is for none")
    if tvm_ffi.get_global_func(_CREATE, allow_missing=True) is not None:
        raise RuntimeError(
            "TVM's runtime for CUDA is in this process without a device, and comes only once: give "
            "the fixture cuda_device to the earlier test that made a CUDA module, or, where the "
            "machine has a driver and no GPU, run the tests without that driver"
        )
    driver = ctypes.CDLL(str(driver_library()))
    ctypes.CDLL(str(runtime_library()))
    ctypes.CDLL(str(tvm_runtime_library()))
    if not tvm.cuda(0).exist:
        raise EmulationUnavailable("TVM does not see the emulated CUDA device")
    return driver


def graph_launches() -> int:
    """How many CUDA graphs this process has launched."""
    load()
    launches: int = ctypes.CDLL(str(runtime_library())).cudaEmulationGraphLaunches()
    return launches


@contextmanager
def emulated(
    order: str = "forward", headers: Sequence[Path] = (), *, seconds: int = 120
) -> Iterator[None]:
    """While it lasts, TVM compiles CUDA for the emulated device, and its threads run in `order`.

    Args:
        order: `forward`, `backward`, or `shuffled:SEED`, for threads that could run at once.
        headers: what generated kernels include beside CUDA's headers and the emulated functions.
        seconds: a launch that takes longer is an error.
    """
    import tvm_ffi

    kind, _, seed = order.partition(":")
    chosen = (_ORDERS[kind], zlib.crc32(seed.encode()), seconds)
    callback_before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    settings_before = _settings[-1]
    driver = load()
    tvm_ffi.register_global_func(_CALLBACK, lambda source: compile(source, headers), override=True)
    driver.cudaEmulationConfigure(*chosen)
    _settings.append(chosen)
    try:
        yield
    finally:
        _settings.pop()
        driver.cudaEmulationConfigure(*settings_before)
        if callback_before is None:
            tvm_ffi.remove_global_func(_CALLBACK)
        else:
            tvm_ffi.register_global_func(_CALLBACK, callback_before, override=True)
