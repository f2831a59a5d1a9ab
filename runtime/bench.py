"""Times an artifact beside another model: interleaved, with the spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError
from .hardware import machine
from .session import Session

__all__ = ["Timing", "bench", "interleaved", "machine"]

Run = Callable[[Mapping[str, NDArray[Any]]], object]

_PAUSE = 0.3
"""Seconds: idle threads spin after a call, TVM's by its own default for over 100 ms, and would slow
the next engine."""

_WARM_UP, _WARM_UP_TIME = 2, 0.02
"""Calls that do not count after a pause, and for how many seconds, at least."""
_IN_A_ROW = 5
"""Samples that then follow."""
_TRIES = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over all samples.

    Attributes:
        median_ms, p10_ms, p90_ms: percentiles over the samples.
        samples: how many were taken.
        calls: in one sample, whose time is divided by them.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples: int
    calls: int


def interleaved(
    callables: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    min_time: float = 0.005,
    *,
    pause: float | Callable[[str | None, str], float] = _PAUSE,
) -> dict[str, Timing]:
    """Times callables in turns, so that a change of the machine's pace hits all of them alike.

    A turn starts with a pause and calls that do not count: threads, caches and cores then belong
    to the callable that is timed, not to the one before. Some samples follow, so that the pauses
    do not take longer than the work.

    Args:
        callables: by name; each is first called once or more to warm up.
        repeats: samples of each.
        min_time: seconds that a sample lasts at least, by repeating calls.
        pause: seconds before each turn, or a function of the name before, None at first, and of
            the next one.

    Raises:
        InputError: `repeats` below one.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    calls = {name: _calls_for(call, min_time) for name, call in callables.items()}
    samples: dict[str, list[float]] = {name: [] for name in callables}
    before = None
    for start in range(0, repeats, _IN_A_ROW):
        order = list(callables) if start // _IN_A_ROW % 2 == 0 else list(callables)[::-1]
        for name in order:
            time.sleep(pause(before, name) if callable(pause) else pause)
            before = name
            _settle(callables[name])
            for _ in range(min(_IN_A_ROW, repeats - start)):
                samples[name].append(_seconds(callables[name], calls[name]) / calls[name])
    return {name: _timing(samples[name], calls[name]) for name in callables}


def bench(
    session: Session,
    against: Session | Run | None,
    inputs: Mapping[str, NDArray[Any]],
    *,
    repeats: int = 20,
    min_time: float = 0.005,
) -> dict[str, Any]:
    """Times a session on `inputs` beside another session or function.

    Args:
        session: of the artifact.
        against: takes the same inputs by name and must use as many threads; None for nothing.
        inputs: by name.
        repeats: samples of each.
        min_time: seconds that a sample lasts at least.

    Returns:
        A JSON object: "artifact" and "against" with `median_ms`, `p10_ms`, `p90_ms`; "speedup" is
        the ratio of the medians, above one where the artifact is faster; "threads", "machine",
        "engine", "device", and "inputs" with their shapes.

    Raises:
        InputError: inputs that do not fit, or sessions with different numbers of threads.
    """
    if isinstance(against, Session) and against.num_threads != session.num_threads:
        raise InputError(
            f"the artifact runs on {session.num_threads} threads and what it is compared with on "
            f"{against.num_threads}: load both with the same number"
        )
    callables: dict[str, Callable[[], object]] = {"artifact": lambda: finished(session, inputs)}
    if isinstance(against, Session):
        callables["against"] = lambda: finished(against, inputs)
    elif against is not None:
        callables["against"] = lambda: against(inputs)
    timings = interleaved(callables, repeats, min_time)
    other = timings.get("against")
    return {
        "artifact": asdict(timings["artifact"]),
        "against": None if other is None else asdict(other),
        "speedup": None if other is None else other.median_ms / timings["artifact"].median_ms,
        "threads": session.num_threads,
        "engine": session.engine,
        "device": session.device,
        "inputs": {name: list(np.shape(value)) for name, value in inputs.items()},
        "machine": machine(),
    }


def finished(session: Session, inputs: Mapping[str, NDArray[Any]]) -> None:
    """One call, with the time that a GPU takes behind it."""
    session.run(inputs)
    session.synchronize()


def _calls_for(call: Callable[[], object], min_time: float) -> int:
    """How many calls last `min_time` at least; warms up as it counts.

    The shortest of a few tries counts: a thread that waits for a core once may take that long.
    """
    call()
    calls = 1
    while min(_seconds(call, calls) for _ in range(_TRIES)) < min_time:
        calls *= 2
    return calls


def _settle(call: Callable[[], object]) -> None:
    """Calls that do not count, until the threads that they woke have found a core each."""
    start, calls = time.perf_counter(), 0
    while calls < _WARM_UP or time.perf_counter() - start < _WARM_UP_TIME:
        call()
        calls += 1


def _seconds(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _timing(seconds: list[float], calls: int) -> Timing:
    p10, median, p90 = (1e3 * float(value) for value in np.percentile(seconds, [10, 50, 90]))
    return Timing(median, p10, p90, len(seconds), calls)
