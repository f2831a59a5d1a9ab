"""`FunctionModel`: a function of named arrays, called like a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import numpy_dtype
from .manifest import TensorInfo
from .model import Model

Function = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Outputs by name for inputs by name."""


class FunctionModel(Model):
    """What stands in for a session: the same signature, and a function instead of an engine.

    Outputs are cast to the types of the signature, where the function computes in wider ones.
    """

    def __init__(
        self,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        dimension_bounds: Mapping[str, tuple[int, int]],
        function: Function,
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._dimension_bounds, self._function = dimension_bounds, function

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in positional order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs in the order of the results."""
        return self._outputs

    @property
    def dimension_bounds(self) -> Mapping[str, tuple[int, int]]:
        """The lengths that dynamic dimensions may have."""
        return self._dimension_bounds

    def _execute(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        names = (info.name for info in self.inputs)
        found = self._function(dict(zip(names, arrays, strict=True)))
        return [
            found[info.name].astype(numpy_dtype(info.dtype), copy=False) for info in self.outputs
        ]
