"""Times a candidate beside the rule's choice, in turns, so that both meet the same machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .device import Device

_SAMPLE = 2e-3
"""Seconds that a sample lasts at least."""

_TOLERANCE = 1e-4
"""Relative difference of two orders of summation at most; a wrong kernel is further off."""

_ROUNDINGS = 8
"""The same of types that round more coarsely."""


class Candidate(Protocol):
    """Functions that can be compiled and timed."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it has that the rule's choice has not."""

    @property
    def names(self) -> Sequence[str]:
        """Of the functions."""

    def compile(self, target: Any) -> Any:
        """Their machine code."""


@dataclass(frozen=True)
class Comparison:
    """A candidate beside the rule's choice.

    Attributes:
        median_us: microseconds of a call of the candidate.
        default_us: of the rule's.
        ratio: median of the ratios of neighbouring samples; below one the candidate is faster.
        spread: interquartile range of these ratios.
    """

    median_us: float
    default_us: float
    ratio: float
    spread: float

    @property
    def faster(self) -> bool:
        """Whether the gain is more than the spread."""
        return self.ratio + self.spread < 1


@dataclass(frozen=True, eq=False)
class _Function:
    """A loaded function on its device."""

    module: Any
    name: str


class Bench:
    """One kernel and number of rows, or one function, on one device, its arguments in place."""

    def __init__(
        self,
        device: Device,
        target: Any,
        default: Candidate,
        arrays: Sequence[Sequence[NDArray[Any]]],
    ) -> None:
        self._device, self._target = device, target
        self._arguments = [device.tensors(each) for each in arrays]
        self._default = self._load(default)
        self._outputs = self._run(self._default)
        self._calls = max(1, round(_SAMPLE / max(self._time(self._default, 1), 1e-7)))

    def compare(self, candidate: Candidate, samples: int) -> Comparison | None:
        """The candidate beside the rule's choice; None where its outputs are others."""
        timed = self._load(candidate)
        if not self._agrees(self._run(timed)):
            return None
        pairs = np.array(
            [
                [self._time(each, self._calls) for each in (timed, self._default)]
                for _ in range(samples)
            ]
        )
        ratios = pairs[:, 0] / pairs[:, 1]
        low, high = np.percentile(ratios, [25, 75])
        median, default = 1e6 * np.median(pairs, axis=0)
        return Comparison(
            float(median), float(default), float(np.median(ratios)), float(high - low)
        )

    def _load(self, program: Candidate) -> list[_Function]:
        module = self._device.load(program.compile(self._target))
        return [_Function(module, name) for name in program.names]

    def _run(self, loaded: Sequence[_Function]) -> list[NDArray[Any]]:
        for function, tensors in zip(loaded, self._arguments, strict=True):
            function.module[function.name](*tensors)
        return [tensors[-1].numpy() for tensors in self._arguments]

    def _time(self, loaded: Sequence[_Function], calls: int) -> float:
        """Seconds of one call of all functions."""
        return sum(
            self._device.seconds(function.module, function.name, tensors, calls)
            for function, tensors in zip(loaded, self._arguments, strict=True)
        )

    def _agrees(self, outputs: Sequence[NDArray[Any]]) -> bool:
        return all(map(_same, outputs, self._outputs))


def _same(mine: NDArray[Any], own: NDArray[Any]) -> bool:
    if own.dtype.kind != "f" and own.dtype.name != "bfloat16":
        return bool(np.array_equal(mine, own))
    precision: Any = ml_dtypes.finfo(own.dtype)  # type: ignore[no-untyped-call]
    relative = max(_TOLERANCE, _ROUNDINGS * float(precision.eps))
    mine, own = mine.astype(np.float32), own.astype(np.float32)
    largest = float(np.abs(own[np.isfinite(own)]).max(initial=0))
    return bool(np.allclose(mine, own, rtol=0, atol=relative * largest, equal_nan=True))
