"""`Engine`: loads compiled cases with the bundled runtime of TVM and runs them on torch's tensors."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from .random_data import DTYPES
from .spec import Case, Sizes

_LIBRARIES = ("libtvm_runtime_cuda.so", "libtvm_runtime_extra.so")

Run = Callable[[], torch.Tensor]
"""Computes, and returns where the result is."""


class Engine:
    """TVM's runtime, and the folder of the compiled cases.

    Attributes:
        device: where tensors live.
    """

    def __init__(self, folder: Path, device: str = "cuda") -> None:
        self.folder, self.device = folder, torch.device(device)
        self._machines: dict[str, Any] = {}

    def start(self, runtime: Path) -> None:
        """Makes the runtime in a folder that of this process, without its compiler."""
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        sys.path.insert(0, str(runtime))
        import tvm

        # Torch has loaded CUDA's runtime by now, and the driver; TVM's part needs both.
        for name in _LIBRARIES:
            ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / name))

    def bind(self, case: Case, tensors: Mapping[str, torch.Tensor], sizes: Sizes) -> Run:
        """A call of a case on these weights and inputs."""
        if case.engine == "vm":
            return self._bind_machine(case, tensors)
        return self._bind_functions(case, tensors, sizes)

    def stream(self) -> AbstractContextManager[Any]:
        """Calls inside run on torch's current stream, a capturing one too."""
        import tvm_ffi

        context: AbstractContextManager[Any] = tvm_ffi.use_torch_stream()
        return context

    def _bind_functions(
        self, case: Case, tensors: Mapping[str, torch.Tensor], sizes: Sizes
    ) -> Run:
        library, known = self._library(case), dict(tensors)
        steps = []
        for call in case.calls:
            for tensor in call.outputs:
                shape, dtype = tensor.lengths(sizes), DTYPES[tensor.dtype]
                known[tensor.name] = torch.empty(shape, dtype=dtype, device=self.device)
            names = [*call.inputs, *(tensor.name for tensor in call.outputs)]
            steps.append((library[call.function], [self._given(known[name]) for name in names]))
        result = known[case.result]

        def run() -> torch.Tensor:
            for function, arguments in steps:
                function(*arguments)
            return self._filled(result, steps[-1][1][-1])

        return run

    def _bind_machine(self, case: Case, tensors: Mapping[str, torch.Tensor]) -> Run:
        from tvm.runtime.vm import VirtualMachine

        (call,) = case.calls
        place = [tensor.name for tensor in call.outputs].index(case.result)
        function = self._machines.get(case.name)
        if function is None:
            machine = VirtualMachine(self._library(case), self._tvm_device())
            function = self._machines.setdefault(case.name, machine[call.function])
        arguments = [self._given(tensors[name]) for name in call.inputs]

        def run() -> torch.Tensor:
            outputs = function(*arguments)
            return self._taken(outputs if len(call.outputs) == 1 else outputs[place])

        return run

    def _library(self, case: Case) -> Any:
        import tvm

        return tvm.runtime.load_module(str(self.folder / case.library))

    def _tvm_device(self) -> Any:
        import tvm

        return tvm.cuda(self.device.index or 0)

    def _given(self, tensor: torch.Tensor) -> Any:
        """A tensor as TVM takes it, without a copy."""
        import tvm_ffi

        return tvm_ffi.from_dlpack(tensor)

    def _taken(self, tensor: Any) -> torch.Tensor:
        """What TVM gives, without a copy."""
        return torch.from_dlpack(tensor)

    def _filled(self, tensor: torch.Tensor, given: Any) -> torch.Tensor:
        """`tensor` after TVM wrote to what it was given for it."""
        return tensor
