"""`Layer`: what is timed. `Time`: what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...passes.errors import InputError
from ...passes.pricing import RESOLUTION_MS

DENSE = "dense"

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float64": ir.DataType.DOUBLE,
}


@dataclass(frozen=True)
class Layer:
    """A product `y = x Ŵᵀ`, the gather `y = Ŵ[x]` of an embedding, or a 1x1 convolution.

    Attributes:
        out_features, in_features: of Ŵ.
        scheme: text of a resolved structure, or `dense`.
        gathers: whether rows of Ŵ are looked up.
        dtype: of x and y; of rows for a gather.
        convolves: whether x is `[1, in_features, 1, rows]`, and what takes the place of the
            convolution has to transpose it: in ONNX Runtime.
    """

    out_features: int
    in_features: int
    scheme: str
    gathers: bool = False
    dtype: str = "float32"
    convolves: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError(
                f"{self}: dtype {self.dtype!r} is not timed; known are {', '.join(_DTYPES)}"
            )

    def __str__(self) -> str:
        kind = "gather" if self.gathers else "convolution" if self.convolves else "product"
        return f"{kind} {self.out_features}x{self.in_features} {self.scheme}"

    @property
    def element_type(self) -> ir.DataType:
        """`dtype` as ONNX names it."""
        return _DTYPES[self.dtype]

    @property
    def dense(self) -> Layer:
        """The same layer as it was trained: what all others of its shape take turns with."""
        return replace(self, scheme=DENSE)


@dataclass(frozen=True)
class Time:
    """Milliseconds of one layer in one call, and how well they are known.

    Attributes:
        median_ms, p10_ms, p90_ms: percentiles over the samples; 0 where a layer takes less than
            can be told from a call that does nothing.
        repeats: samples.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int

    @classmethod
    def of_calls(cls, seconds: Sequence[float], fixed: float, copies: int) -> Time:
        """What one of `copies` layers takes in calls whose fixed cost is `fixed` seconds."""
        median, p10, p90 = (
            1e3 * max(0.0, float(found) - fixed) / copies
            for found in np.percentile(seconds, [50, 10, 90])
        )
        return cls(median, p10, p90, len(seconds))

    def scaled(self, factor: float) -> Time:
        """The same on a machine that takes `factor` times as long."""
        return Time(
            factor * self.median_ms, factor * self.p10_ms, factor * self.p90_ms, self.repeats
        )

    def pace(self, before: Time) -> float:
        """What times of now are multiplied by to be as they were when the same took `before`."""
        # A lookup of one row takes less than can be told: a ratio of two such times means nothing.
        told = min(before.median_ms, self.median_ms) >= RESOLUTION_MS
        return before.median_ms / self.median_ms if told else 1.0


def at_pace(times: Mapping[Layer, Time], dense: Layer, before: Time | None) -> dict[Layer, Time]:
    """Times as they are at the pace at which the dense layer took what it did before.

    Without that they stay as they are; with it the dense layer, whose time is known, is left out.
    """
    if before is None:
        return dict(times)
    pace = times[dense].pace(before)
    return {layer: time.scaled(pace) for layer, time in times.items() if layer != dense}
