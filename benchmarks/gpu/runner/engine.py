"""`Engine`: loads compiled cases with the bundled runtime of TVM, for tensors of torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.dlpack

from .random_data import DTYPES
from .spec import Case, Sizes

_LIBRARIES = ("libtvm_runtime_cuda.so", "libtvm_runtime_extra.so")
_CUDA = "libcudart.so.13"
_CUDA_FOLDER = "nvidia/cu13/lib"
"""Where packages of PyPI put CUDA's runtime."""

Run = Callable[[], Any]
"""Computes; what it returns is dropped where only its time is of interest."""


@dataclass(frozen=True)
class Bound:
    """A case on certain weights and inputs.

    Attributes:
        run: computes.
        result: the checked output, from what `run` returned.
    """

    run: Run
    result: Callable[[Any], torch.Tensor]


class Engine:
    """TVM's runtime, and the folder of the compiled cases.

    Attributes:
        device: where tensors live.
    """

    def __init__(self, folder: Path, device: str = "cuda") -> None:
        self.folder, self.device = folder, torch.device(device)
        self._libraries: dict[str, Any] = {}
        self._machines: dict[str, Any] = {}

    def start(self) -> None:
        """Loads TVM's runtime for CUDA, which it does not do by itself without its compiler."""
        import tvm

        _load_cuda()
        for name in _LIBRARIES:
            ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / name))

    def bind(self, case: Case, tensors: Mapping[str, torch.Tensor], sizes: Sizes) -> Bound:
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
    ) -> Bound:
        library, known = self._library(case), dict(tensors)
        given: dict[str, Any] = {}
        steps = []
        for call in case.calls:
            for tensor in call.outputs:
                shape, dtype = tensor.lengths(sizes), DTYPES[tensor.dtype]
                known[tensor.name] = torch.empty(shape, dtype=dtype, device=self.device)
            names = [*call.inputs, *(tensor.name for tensor in call.outputs)]
            given |= {name: self._given(known[name]) for name in names if name not in given}
            steps.append((library[call.function], [given[name] for name in names]))

        def run() -> None:
            for function, arguments in steps:
                function(*arguments)

        return Bound(run, lambda _: self._filled(known[case.result], given[case.result]))

    def _bind_machine(self, case: Case, tensors: Mapping[str, torch.Tensor]) -> Bound:
        from tvm.runtime.vm import VirtualMachine

        (call,) = case.calls
        place = [tensor.name for tensor in call.outputs].index(case.result)
        function = self._machines.get(case.name)
        if function is None:
            machine = VirtualMachine(self._library(case), self._tvm_device())
            function = self._machines.setdefault(case.name, machine[call.function])
        arguments = [self._given(tensors[name]) for name in call.inputs]

        def result(outputs: Any) -> torch.Tensor:
            return self._taken(outputs if len(call.outputs) == 1 else outputs[place])

        return Bound(lambda: function(*arguments), result)

    def _library(self, case: Case) -> Any:
        import tvm

        if case.library not in self._libraries:
            path = str(self.folder / case.library)
            self._libraries[case.library] = tvm.runtime.load_module(path)
        return self._libraries[case.library]

    def _tvm_device(self) -> Any:
        import tvm

        return tvm.cuda(self.device.index or 0)

    def _given(self, tensor: torch.Tensor) -> Any:
        """A tensor as TVM takes it, without a copy."""
        import tvm_ffi

        return tvm_ffi.from_dlpack(tensor)

    def _taken(self, tensor: Any) -> torch.Tensor:
        """What TVM gives, without a copy."""
        return torch.utils.dlpack.from_dlpack(tensor)

    def _filled(self, tensor: torch.Tensor, given: Any) -> torch.Tensor:
        """`tensor` after TVM wrote to what it was given for it."""
        return tensor


def _load_cuda() -> None:
    """Loads CUDA's runtime by its name, which TVM's library asks for: torch may have done so."""
    try:
        ctypes.CDLL(_CUDA)
    except OSError:
        places = [Path(place) / _CUDA_FOLDER / _CUDA for place in sys.path]
        found = [path for path in places if path.is_file()]
        if not found:
            raise
        ctypes.CDLL(str(found[0]))
