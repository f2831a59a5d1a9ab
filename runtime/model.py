"""`Model`: what is called with arrays or tensors, by position or by name, and checks them first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import TensorInfo
from .signature import bind, check
from .tensors import is_torch, to_torch


class Model(ABC):
    """Something with a signature that can be called: a `Session`, or what stands in for one."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in positional order."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs in the order of the results."""

    @property
    @abstractmethod
    def dimension_bounds(self) -> Mapping[str, tuple[int, int]]:
        """The lengths that dynamic dimensions may have."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output, or a tuple of the outputs, for inputs by position or by name.

        Returns:
            torch tensors if an input is one, on the GPU if an input is there, else numpy arrays.

        Raises:
            InputError: inputs that do not fit the signature.
        """
        results = tuple(self._results(bind(self.inputs, args, kwargs)))
        return results[0] if len(results) == 1 else results

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name for inputs by name; names need not be Python identifiers.

        Raises:
            InputError: inputs that do not fit the signature.
        """
        results = self._results(bind(self.inputs, (), inputs))
        return dict(zip((info.name for info in self.outputs), results, strict=True))

    def _results(self, values: Mapping[str, Any]) -> Sequence[Any]:
        arrays = check(self.inputs, self.dimension_bounds, values)
        results = self._execute([arrays[info.name] for info in self.inputs])
        if any(is_torch(value) for value in values.values()):
            return [to_torch(array) for array in results]
        return results

    @abstractmethod
    def _execute(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Runs checked inputs, in order; the results are writable and nobody else's."""
