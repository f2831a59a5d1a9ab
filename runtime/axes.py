"""The scale of a plot: from numbers to places between 0 and 1, with round numbers as ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        ticks: round numbers that rise; the first and the last are the ends of the axis.
        logarithmic: whether equal ratios are equally far.
    """

    ticks: tuple[float, ...]
    logarithmic: bool

    def place(self, value: float) -> float:
        """0 for the first tick, 1 for the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


def linear_axis(values: Sequence[float]) -> Axis:
    """From 0 to a round number that no value exceeds."""
    largest = max(values, default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    steps = (factor * power for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0))
    step = next(step for step in steps if largest / step <= _MOST_TICKS - 1)
    count = math.ceil(largest / step - 1e-9)
    return Axis(tuple(step * number for number in range(count + 1)), logarithmic=False)


def log_axis(values: Sequence[float]) -> Axis:
    """Round numbers around positive values: 1, 2, 5, 10, or powers of ten where they range far."""
    for digits in ((1, 2, 5), (1,)):
        ticks = _around(values, digits)
        if len(ticks) <= _MOST_TICKS:
            return Axis(ticks, logarithmic=True)
    power, stride = math.log10(ticks[0]), math.ceil(len(ticks) / _MOST_TICKS)
    count = math.ceil((len(ticks) - 1) / stride)
    powers = (round(power) + stride * number for number in range(count + 1))
    return Axis(tuple(float(f"1e{power}") for power in powers), logarithmic=True)


def _around(values: Sequence[float], digits: Sequence[int]) -> tuple[float, ...]:
    """Numbers of one digit, from the last that is not above any value to the first not below."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    start = max(number for number, mark in enumerate(marks) if mark <= low)
    stop = min(number for number, mark in enumerate(marks) if mark >= high and number > start)
    return tuple(marks[start : stop + 1])
