"""Times calls in rounds until each is known well enough, or the time for them is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

PAUSES: Mapping[str, float] = {"ort": 0.05, "tvm": 0.0}
"""Seconds before each turn, by engine. Threads of a session of ONNX Runtime look for work so long
after a call, which would take a core from the next session. Those of TVM are of the process: none
is in the way, and behind a pause they may find themselves on one core for the next 50 ms."""

PROCEDURE = 3
"""Counts the ways in which times were taken: kept ones are not mixed with those of another."""

_TURN = 0.02
"""Seconds of the samples of a turn, unless there are enough of them before."""
_SAMPLES = 5
_ROUNDS = 3
"""At least: the pace of a machine that is at work on other things shows from round to round."""
_PRECISE = 0.01
"""Standard error of the median, as a share of it, below which no more samples are taken."""

Name = TypeVar("Name", bound=Hashable)


def in_rounds(
    calls: Mapping[Name, Callable[[], object]],
    seconds: float,
    *,
    pause: float,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[Name, list[float]]:
    """Seconds of each sample by name: all take a turn in each round, so pace hits all alike.

    Every other round goes backwards. The first call of a turn does not count: it finds the caches
    and the cores as the one before has left them.

    Args:
        calls: by name.
        seconds: after which no further round begins, when there were a few.
        pause: seconds before each turn.
        between: is called before each call.
        clock: tells seconds.
        sleep: waits for seconds.
    """
    start, rounds = clock(), 0
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    while rounds < _ROUNDS or (
        clock() - start < seconds and any(error(found) > _PRECISE for found in samples.values())
    ):
        for name in list(calls) if rounds % 2 == 0 else list(calls)[::-1]:
            sleep(pause)
            samples[name] += _turn(calls[name], between, clock)
        rounds += 1
    return samples


def error(seconds: list[float]) -> float:
    """Standard error of the median as a share of it, by the 10th and 90th percentile.

    These are 2.56 standard deviations of a normal distribution apart, and a median of n samples
    has the error of √(π/2n) of one.
    """
    low, median, high = np.percentile(seconds, [10, 50, 90])
    if median == 0:
        return 0.0
    return float((high - low) / 2.56 * math.sqrt(math.pi / (2 * len(seconds))) / median)


def _turn(
    call: Callable[[], object], between: Callable[[], object], clock: Callable[[], float]
) -> list[float]:
    between()
    call()
    taken: list[float] = []
    while len(taken) < _SAMPLES and sum(taken) < _TURN:
        between()
        start = clock()
        call()
        taken.append(clock() - start)
    return taken
