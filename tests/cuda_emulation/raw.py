"""Launches kernels written by hand, on arrays: the memory of the device is the host's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from undense.backend.tuning.cuda.runner.gpu import DYNAMIC_SHARED, LaunchConfig

from cuda_emulation.device import load
from cuda_emulation.kernels import compile


class CudaError(RuntimeError):
    """A function of the emulated driver returned an error; the message is the driver's."""


class Kernels:
    """The kernels of one CUDA source.

    Args:
        source: CUDA C++; each kernel is `extern "C" __global__ void name(...) {`.
        headers: what it includes beside CUDA's headers and the emulated device functions.
    """

    def __init__(self, source: str, headers: Sequence[Path] = ()) -> None:
        self._driver = load()
        self._module = ctypes.c_void_p()
        image = compile(source, headers)
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), image))

    def launch(
        self,
        name: str,
        *arguments: NDArray[np.generic] | np.generic,
        grid: tuple[int, ...] = (1,),
        block: tuple[int, ...] = (32,),
        shared: int = 0,
        allowed_shared: int | None = None,
        stream: ctypes.c_void_p | None = None,
    ) -> None:
        """Runs a kernel: an array is a pointer to its elements, a numpy scalar is a value.

        Args:
            name: the kernel's.
            arguments: in the kernel's order.
            grid: blocks in x, y and z.
            block: threads in x, y and z.
            shared: bytes of dynamic shared memory.
            allowed_shared: the most of it, as cuFuncSetAttribute sets it before the launch.
            stream: of the runtime; the default stream unless given.
        """
        function = ctypes.c_void_p()
        found = self._driver.cuModuleGetFunction(
            ctypes.byref(function), self._module, name.encode()
        )
        self._check(found)
        if allowed_shared is not None:
            self._check(self._driver.cuFuncSetAttribute(function, DYNAMIC_SHARED, allowed_shared))
        values = [
            np.array(argument.ctypes.data, np.uint64)
            if isinstance(argument, np.ndarray)
            else np.array(argument)
            for argument in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        extents = [*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))]
        config = LaunchConfig(*extents, shared, stream, None, 0)
        self._check(self._driver.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None))

    def _check(self, error: int) -> None:
        if error:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(error, ctypes.byref(text))
            raise CudaError((text.value or b"").decode())
