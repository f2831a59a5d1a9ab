"""Where candidates run: this process, or a server that a tracker has lent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from ...runtime.hardware import machine
from ...runtime.tvm_session import use_threads


class Device(ABC):
    """A machine that loads compiled functions and runs them."""

    @property
    @abstractmethod
    def processor(self) -> Any:
        """What runs functions and holds tensors, as TVM names it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What its maker calls the processor; empty where that is not known."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many a kernel uses."""

    @abstractmethod
    def load(self, compiled: Any) -> Any:
        """The functions of what `tvm.compile` gave, there."""

    def seconds(self, module: Any, name: str, tensors: Sequence[Any], calls: int) -> float:
        """Of one call of a loaded function, in the mean of some."""
        timer = module.time_evaluator(name, self.processor, number=calls, repeat=1)
        return float(timer(*tensors).mean)

    def tensors(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        """Copies of arrays in its memory."""
        return [
            tvm.runtime.tensor(np.ascontiguousarray(array), device=self.processor)
            for array in arrays
        ]


class LocalDevice(Device):
    """This process, in the calling thread: no start of another one, no file."""

    def __init__(self, threads: int) -> None:
        use_threads(threads)
        self._threads = threads

    @property
    def processor(self) -> Any:
        """The CPU of this machine."""
        return tvm.cpu()

    @property
    def name(self) -> str:
        """As the system tells it."""
        return str(machine()["cpu"])

    @property
    def threads(self) -> int:
        """As it was made with."""
        return self._threads

    def load(self, compiled: Any) -> Any:
        """The functions by just-in-time linking."""
        return compiled.jit()
