"""Runs the compiled module of an artifact with the runtime of Apache TVM."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..passes.errors import ArtifactError, UndenseError
from .artifact import CUBLAS, MODULE, WEIGHTS, Artifact, Device, Engine
from .calls import Call, shapes
from .gpu_tensors import checked, is_on_gpu
from .hardware import usable_cores
from .library import check_processor, last_line, library_path
from .session import Session
from .tensors import is_torch, to_torch

# Else the first call pins the calling thread to one core, and so every thread to the same one.
os.environ.setdefault("TVM_BIND_THREADS", "0")
# Idle threads of the pool look for work about 5 ms and not 170, which other engines would pay for.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "10000")

import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from .alignment import ALIGNMENT
from .cublas import cublas_module
from .cuda_runtime import cuda_device
from .tvm_cuda import TURNS, Staging, stream_of, to_device, to_torch_on_gpu
from .tvm_pool import POOL

_BIG_CORES = 1
_GO_ON = 0  # what an instrument of the virtual machine returns to have the call made
_SHAPES = "shape_func"  # computes lengths on the host
_set_threads = tvm_ffi.get_global_func("runtime.config_threadpool")
_pool = threading.local()


class TvmSession(Session):
    """`module.so` with the weights of `weights.safetensors`, which all threads share.

    A virtual machine is not thread-safe, several on one executable are: one a thread.
    """

    engine: Engine = "tvm"

    def __init__(self, artifact: Artifact, num_threads: int, device: Device = "cpu") -> None:
        super().__init__(artifact, num_threads, device)
        _check_machine(artifact)
        path = artifact.file(MODULE)
        self._device = tvm.cpu()
        if device == "cuda":
            self._device = cuda_device(artifact.manifest.architectures, str(artifact.path))
        cublas = cublas_module(artifact) if CUBLAS in artifact.manifest.files else None
        try:
            self._executable = tvm_ffi.load_module(
                library_path(artifact, MODULE), keep_module_alive=False
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be loaded ({last_line(error)})") from error
        if cublas is not None:
            (code,) = (part for part in self._executable.imports if part.kind == "library")
            code.import_module(cublas)
        self._parameters = _read_parameters(artifact, self._device)
        self._parameter_memory = {value.data_ptr() for value in self._parameters}
        self._local = threading.local()
        self._staging = Staging(self._device)
        if device == "cpu":
            weakref.finalize(self, POOL.empty).atexit = False

    def _main(self) -> Any:
        main = getattr(self._local, "main", None)
        if main is None:
            main = VirtualMachine(self._executable, self._device)["main"]
            self._local.main = main
        if getattr(_pool, "threads", None) != self.num_threads:
            use_threads(self.num_threads)
        return main

    def _results(self, values: Mapping[str, Any]) -> Sequence[Any]:
        if self.device == "cpu":
            return super()._results(values)
        bounds = self.manifest.dimension_bounds
        given = checked(self.inputs, bounds, values, check_indices=self.check_indices)
        if not any(map(is_on_gpu, given)):
            copies = self._execute(given)
            on_host = any(map(is_torch, values.values()))
            return [to_torch(array) for array in copies] if on_host else copies
        with self._turn(given):
            inputs = [self._to_tvm(value) for value in given]
            results = self._call(inputs)
        return [to_torch_on_gpu(value, copy=copy) for value, copy in self._owned(results, inputs)]

    def _execute(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        if self.device == "cuda":
            with self._turn([]):
                staged = [self._staging.put(*item) for item in enumerate(arrays)]
                return [value.numpy() for value in self._call(staged)]
        with POOL.call((id(self), *(array.shape for array in arrays))):
            inputs = [self._to_tvm(array) for array in arrays]
            results = self._call(inputs)
        return [_to_numpy(value, copy=copy) for value, copy in self._owned(results, inputs)]

    def _call(self, inputs: Sequence[Any]) -> list[Any]:
        try:
            result = self._main()(*inputs, *self._parameters)
        except Exception as error:  # the FFI raises what it likes
            raise UndenseError(f"{self.path}: tvm failed: {last_line(error)}") from error
        return [result] if isinstance(result, tvm.runtime.Tensor) else list(result)

    def _owned(self, results: Sequence[Any], inputs: Sequence[Any]) -> list[tuple[Any, bool]]:
        """The results, and whether each must be copied before a caller may write to it.

        He must not write into an input, and never into a weight.
        """
        lent = {value.data_ptr() for value in inputs} | self._parameter_memory
        return [(value, value.data_ptr() in lent) for value in results]

    def synchronize(self) -> None:
        """Waits until the GPU has done what was queued on the streams that calls have used."""
        if self.device == "cuda":
            TURNS.synchronize(self._device)

    def _trace(self, arrays: Sequence[NDArray[np.generic]], runs: int) -> list[list[Call]]:
        machine = VirtualMachine(self._executable, self._device)
        use_threads(self.num_threads)
        found = []
        with self._turn([]):
            inputs = [self._to_tvm(array) for array in arrays]
            machine["main"](*inputs, *self._parameters)
            trace = _Trace(self.synchronize)
            machine.set_instrument(trace)
            for _ in range(runs):
                machine["main"](*inputs, *self._parameters)
                found.append(trace.take())
        return found

    def _turn(self, values: Sequence[Any]) -> AbstractContextManager[None]:
        """While it lasts, the GPU is this thread's to queue on, on the stream of the inputs."""
        if self.device == "cpu":
            return nullcontext()
        return TURNS.on(self._device, stream_of(values))

    def _to_tvm(self, value: Any) -> Any:
        return _to_tvm(value) if self.device == "cpu" else to_device(value, self._device)


class _Trace:
    """An instrument of the virtual machine, which it calls before and after each function.

    Args:
        finish: waits for what the function has asked of a device.
    """

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._calls: list[Call] = []
        self._running: list[tuple[float, float]] = []
        """Of each open call: its start, and the seconds of the calls inside it."""
        self._inside = 0.0

    def __call__(self, _function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """Notes the time; 0 tells the machine to go on."""
        if not before:
            self._finish()
        now = time.perf_counter()
        if before:
            self._running.append((now, self._inside))
            self._inside = 0.0
        else:
            start, around = self._running.pop()
            own = now - start - self._inside
            builtin = name.startswith("vm.builtin.") or name == _SHAPES
            self._calls.append(Call(name, "" if builtin else _workload(args), own, builtin))
            self._inside = around + now - start
        return _GO_ON

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self._calls = self._calls, []
        return calls


def _workload(args: Sequence[Any]) -> str:
    tensors = [tuple(arg.shape) for arg in args if isinstance(arg, tvm.runtime.Tensor)]
    return shapes(tensors[:-1], tensors[-1]) if tensors else ""


def use_threads(number: int) -> None:
    """Sets how many threads of its pool, which never grows, the calling thread uses."""
    if not hasattr(_pool, "threads"):
        largest = max(number, usable_cores())
        _set_threads(_BIG_CORES, largest, ["0"] * largest)
    _set_threads(_BIG_CORES, number, ["0"] * number)
    _pool.threads = number
    if number > 1 and (got := tvm.runtime.num_threads()) < number:
        warnings.warn(
            f"tvm already has a pool of {got} threads here and cannot use {number}: "
            "set TVM_NUM_THREADS before its first use",
            stacklevel=2,
        )


def _check_machine(artifact: Artifact) -> None:
    """What would end the process is refused: other instruction sets, another bytecode."""
    remedy = "compile the model again"
    if "ort" in artifact.engines:
        remedy += ", or load it with engine ort"
    check_processor(artifact, remedy)
    made_with = artifact.manifest.versions.get("apache-tvm", tvm.__version__)
    if made_with.split(".")[:2] != tvm.__version__.split(".")[:2]:
        raise ArtifactError(
            f"{artifact.path} was compiled by apache-tvm {made_with} and {tvm.__version__} is "
            f"installed: install apache-tvm=={made_with}, {remedy}"
        )


def _read_parameters(artifact: Artifact, device: Any) -> list[Any]:
    """The weights in the order of main, read and copied one at a time."""
    path = artifact.file(WEIGHTS)
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = artifact.manifest.parameters
            return [tvm.runtime.tensor(file.get_tensor(name), device) for name in names]
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} does not hold what the module needs: {error}") from error


def _to_tvm(array: NDArray[np.generic]) -> Any:
    """A tensor on the memory of `array` where its layout allows it, else a copy."""
    shareable = (
        array.size
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.ctypes.data % ALIGNMENT == 0
    )
    if shareable and array.dtype.name != "bfloat16":  # which DLPack of numpy does not know
        return tvm.runtime.from_dlpack(array)
    return tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape))


def _to_numpy(value: Any, *, copy: bool) -> NDArray[np.generic]:
    copy = copy or str(value.dtype) == "bfloat16"  # which DLPack of numpy does not know
    array: NDArray[np.generic] = value.numpy() if copy else np.from_dlpack(value)
    return array
