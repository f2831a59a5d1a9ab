"""`Parameters`: the tensors that `main` takes behind its inputs, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

Make = Callable[[], NDArray[Any]]


class Parameters:
    """Variables of `main` now, arrays later: weights are packed one at a time, once."""

    def __init__(self) -> None:
        self._makers: dict[str, Make] = {}
        self._variables: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._sources: dict[str, str] = {}

    def variable(self, name: str, shape: Sequence[int], dtype: str, make: Make, source: str) -> Any:
        """The variable of that name and shape; `make` is that of the first call.

        `source` names the site or constant of the model that it is made of.
        """
        key = (name, tuple(shape))
        if key not in self._variables:
            unique = name if name not in self._makers else f"{name}.{len(self._makers)}"
            self._makers[unique] = make
            self._sources[unique] = source
            self._variables[key] = relax.Var(unique, relax.TensorType(shape, dtype))
        return self._variables[key]

    @property
    def sources(self) -> Mapping[str, str]:
        """What each array is made of."""
        return self._sources

    @property
    def variables(self) -> list[Any]:
        """All variables in the order of their first use."""
        return list(self._variables.values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, in the order of `variables`."""
        return {name: np.asarray(make(), order="C") for name, make in self._makers.items()}
