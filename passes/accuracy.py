"""`metric(dense) − metric(compiled) ≤ max_drop`: how many layers have to be given back for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import PlanError, SchemeError

DropType = Literal["absolute", "relative"]

Drop = Callable[[int], float]
"""Of the metric, with so many of the worst layers given back."""

_BUILDS = 4
"""That may fail before everything is given back."""


@dataclass(frozen=True)
class AllowedDrop:
    """What the metric of a dense model may lose.

    Attributes:
        dense: that metric; higher is better.
        max_drop: the most that may be lost.
        drop_type: in the unit of the metric, or as a share of it.
    """

    dense: float
    max_drop: float
    drop_type: DropType

    def __post_init__(self) -> None:
        if self.drop_type == "relative" and self.dense == 0:
            raise PlanError(
                "validation: the metric of the dense model is 0, so that no drop is relative to "
                "it; choose the absolute drop"
            )

    def drop(self, metric: float) -> float:
        """What a metric lacks."""
        lost = self.dense - metric
        return lost if self.drop_type == "absolute" else lost / abs(self.dense)


def parse_drop_type(text: str) -> DropType:
    """The type of that name.

    Raises:
        SchemeError: there is none.
    """
    for known in get_args(DropType):
        if text == known:
            found: DropType = known
            return found
    raise SchemeError(f"a drop of type {text!r} is not known; there are absolute and relative ones")


@dataclass(frozen=True)
class GivenBack:
    """How many layers were given back, and why that many.

    Attributes:
        before: for each of them the last drop that was too large, measured or expected, before it
            was given back.
        drop: that is left.
    """

    before: tuple[float, ...]
    drop: float


def give_back(count: int, predicted: Drop, built: Drop, max_drop: float) -> GivenBack:
    """Gives back the fewest of `count` layers, worst first, with which a built model holds.

    Their number is found with predictions. Where a build drops further than was predicted for it,
    the next ones are expected to do so too, in proportion to the layers that are left.

    Args:
        count: of layers; without any of them the model is the dense one, which holds.
        predicted: without building, for less than `count`.
        built: by building; the last number it is asked for is the one that is returned.
        max_drop: that may be left.
    """
    drops: dict[int, float] = {}
    excess, failed = 0.0, -1

    def holds(number: int) -> bool:
        share = (count - number) / (count - max(failed, 0))
        drops[number] = predicted(number) + excess * share
        return drops[number] <= max_drop

    for build in range(_BUILDS + 1):
        number = fewest(count, holds, failed) if build < _BUILDS else count
        drops[number] = built(number)
        if number == count or drops[number] <= max_drop:
            break
        excess, failed = max(drops[number] - predicted(number), 0.0), number
        drops = {tried: drop for tried, drop in drops.items() if tried <= number}
    before = tuple(drops[max(n for n in drops if n <= position)] for position in range(number))
    return GivenBack(before, drops[number])


def fewest(count: int, holds: Callable[[int], bool], failed: int = -1) -> int:
    """The least number above `failed` that holds, by galloping and bisection; `count` does.

    The number below it does not hold, though where that is not monotone a lesser one might.
    """
    low, high = failed, failed + 1
    while high < count and not holds(high):
        low, high = high, min(2 * high - failed, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
