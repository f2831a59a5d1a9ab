"""`Layer`: one weight in one form in one engine, ready to be timed and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from undense.runtime.compare import relative_error

from .peak import Arithmetic

Array = NDArray[Any]
_CHECKED = 512
"""Outputs that are compared with float64, spread out, and all of the last ones."""
_LAST = 64


@dataclass(frozen=True, eq=False)
class Call:
    """A layer bound to an input.

    Attributes:
        run: computes the output where the engine keeps it.
        output: of the last run, `[rows, out_features]`.
        kept: what must live as long, since the engine holds only its address.
    """

    run: Callable[[], object]
    output: Callable[[], Array]
    kept: object = None


Load = Callable[[int], Callable[[Array], Call]]


@dataclass(frozen=True, eq=False)
class Layer:
    """`y = x Ŵᵀ` in one engine.

    Attributes:
        engine: `undense`, `ORT`, `torch` or `ggml`.
        scheme: the form of the weight, as the engine or undense calls it.
        out_features, in_features: of the dense weight.
        weight: Ŵ at the outputs `checked_outputs(out_features)`, float64.
        macs: multiply-accumulates for one row of x.
        stored_bytes: of the weight in the engine.
        load: puts a copy of the weight into the engine for so many threads; what it returns binds
            that copy to an input. The number of threads may hold for all layers of the engine, so
            layers are timed together only if they were loaded with the same one.
        arithmetic: of the products; `int8` if x is rounded to 8 bits.
        rounded: x as the engine rounds it, in float64; None if it does not, or nobody wrote down
            how.
        four_bit: whether it is one of the 4-bit forms that others are compared with.
    """

    engine: str
    scheme: str
    out_features: int
    in_features: int
    weight: Array
    macs: int
    stored_bytes: int
    load: Load
    arithmetic: Arithmetic = "float32"
    rounded: Callable[[Array], Array] | None = None
    four_bit: bool = False

    @property
    def name(self) -> str:
        """The engine and the scheme."""
        return f"{self.engine} {self.scheme}"

    def errors(self, x: Array, y: Array) -> tuple[float | None, float | None]:
        """How far y is off what the form should compute, and what rounding x did to it.

        Returns:
            The relative execution error, None if x is rounded in a way that is not known; and the
            relative distance from the product with x as it is, None if x is not rounded.
        """
        checked = y[:, checked_outputs(self.out_features)]
        plain = x.astype(np.float64) @ self.weight.T
        if self.arithmetic == "float32":
            return relative_error(checked, plain), None
        effect = relative_error(checked, plain)
        if self.rounded is None:
            return None, effect
        return relative_error(checked, self.rounded(x) @ self.weight.T), effect


def checked_outputs(out_features: int) -> NDArray[np.intp]:
    """The outputs that are compared with float64: all of a small layer, else some of them."""
    spread = np.linspace(0, out_features - 1, min(out_features, _CHECKED)).astype(np.intp)
    last = np.arange(max(0, out_features - _LAST), out_features)
    return np.union1d(spread, last)
