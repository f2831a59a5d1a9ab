"""The GPU: memory and clock of torch, code and launches by the driver alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAXDYNAMIC_SHARED_SIZE_BYTES

Json = dict[str, Any]
Call = Callable[[], None]


def imported_torch() -> Any:
    """Torch, which only who measures needs."""
    import torch

    return torch


class DeviceError(Exception):
    """The driver refused something; says what."""


class LaunchConfig(ctypes.Structure):
    """`CUlaunchConfig` of the driver."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z")),
        *((name, ctypes.c_uint) for name in ("block_x", "block_y", "block_z")),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Gpu:
    """The GPU that torch uses: its memory and clock are torch's, its launches the driver's."""

    device = "cuda"

    def __init__(self) -> None:
        torch = imported_torch()
        if not torch.cuda.is_available():
            raise DeviceError("torch finds no GPU on this machine")
        torch.cuda.init()
        torch.zeros(1, device=self.device)  # makes its context that of this thread
        self.driver = ctypes.CDLL("libcuda.so.1")

    def facts(self) -> Json:
        """What the results say of the machine."""
        torch = imported_torch()
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        return {"gpu": name, "capability": f"{major}.{minor}", "torch": str(torch.__version__)}

    @property
    def cache_bytes(self) -> int:
        """Of the cache that all multiprocessors share."""
        torch = imported_torch()
        return int(torch.cuda.get_device_properties(0).L2_cache_size)

    @property
    def free_bytes(self) -> int:
        """Of its memory."""
        torch = imported_torch()
        return int(torch.cuda.mem_get_info()[0])

    @property
    def stream(self) -> int:
        """The one that launches go to; another one while a graph is captured."""
        torch = imported_torch()
        return int(torch.cuda.current_stream().cuda_stream)

    def synchronize(self) -> None:
        """Waits; raises what a kernel did wrong."""
        torch = imported_torch()
        torch.cuda.synchronize()

    def captured(self, calls: Sequence[Call]) -> Call:
        """All calls as one."""
        torch = imported_torch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        replay: Call = graph.replay
        return replay

    def seconds(self, call: Call) -> float:
        """From before to behind it, on the device."""
        torch = imported_torch()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def check(self, status: int, what: str) -> None:
        """Raises where the driver returned an error."""
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            raise DeviceError(f"{what}: {(text.value or str(status).encode()).decode()}")


class Kernel:
    """One candidate, loaded."""

    def __init__(self, gpu: Gpu, code: Path, described: Mapping[str, Any]) -> None:
        self._gpu = gpu
        self._launch = described["launch"]
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver, shared = gpu.driver, int(self._launch["shared_bytes"])
        image = code.read_bytes()
        gpu.check(driver.cuModuleLoadData(ctypes.byref(self._module), image), "cuModuleLoadData")
        name = str(self._launch["kernel"]).encode()
        found = driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name)
        gpu.check(found, "cuModuleGetFunction")
        allowed = driver.cuFuncSetAttribute(self._function, DYNAMIC_SHARED, shared)
        gpu.check(allowed, "cuFuncSetAttribute")

    def bound(self, tensors: Mapping[str, Any], rows: int) -> Call:
        """A launch on these tensors."""
        return _Launch(self._gpu, self._function, self._launch, tensors, rows)

    def unload(self) -> None:
        """Gives its memory back."""
        self._gpu.check(self._gpu.driver.cuModuleUnload(self._module), "cuModuleUnload")


class _Launch:
    """A launch with its arguments, which live as long as it does."""

    def __init__(
        self, gpu: Gpu, function: Any, launch: Mapping[str, Any], tensors: Mapping[str, Any],
        rows: int,
    ) -> None:  # fmt: skip
        self._gpu, self._function = gpu, function
        self._extents = [*launch["grid"], *launch["block"], launch["shared_bytes"]]
        self._values = [
            ctypes.c_int64(rows) if name == "rows" else ctypes.c_void_p(tensors[name].data_ptr())
            for name in launch["arguments"]
        ]
        places = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in self._values]
        self._pointers = (ctypes.c_void_p * len(places))(*places)

    def __call__(self) -> None:
        config = LaunchConfig(*self._extents, self._gpu.stream, None, 0)
        launch = self._gpu.driver.cuLaunchKernelEx
        status = launch(ctypes.byref(config), self._function, self._pointers, None)
        self._gpu.check(status, "cuLaunchKernelEx")
