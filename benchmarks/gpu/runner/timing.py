"""Times calls by device events: warm, in CUDA graphs, taking turns with their baselines."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from .engine import Run

REPEATS = 30
"""Samples of each subject."""

LEAST_CALLS = 16
"""Of a sample: one is short against what surrounds it."""


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Attributes:
        runs: calls on different weights and inputs, one after the other.
        stream: to be inside while it runs.
        capture: whether to put the calls into a CUDA graph; some have one of their own.
    """

    runs: Sequence[Run]
    stream: Callable[[], AbstractContextManager[object]] = nullcontext
    capture: bool = True


@dataclass(frozen=True)
class Timed:
    """Microseconds of a call.

    Attributes:
        median, p10, p90: over the samples.
        samples: how many there are.
        calls: of a sample.
        launched: `graph`, or why the calls were launched one by one.
    """

    median: float
    p10: float
    p90: float
    samples: int
    calls: int
    launched: str


def interleaved(
    subjects: Mapping[str, Subject], repeats: int = REPEATS, clock: type[Clock] | None = None
) -> dict[str, Timed]:
    """Every subject once a round, so that all see the same state of the machine."""
    ticking = (clock or Clock)()
    prepared = {name: ticking.prepared(subject) for name, subject in subjects.items()}
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, (sample, calls, _) in prepared.items():
            samples[name].append(ticking.seconds(sample) / calls * 1e6)
    return {
        name: Timed(*_spread(found), len(found), *prepared[name][1:])
        for name, found in samples.items()
    }


class Clock:
    """Events of the device, around replays of graphs."""

    def prepared(self, subject: Subject) -> tuple[Callable[[], object], int, str]:
        """A sample to run, warmed up, the calls in it, and how they are launched."""
        runs = list(subject.runs)
        runs *= -(-LEAST_CALLS // len(runs))

        def plainly() -> None:
            with subject.stream():
                for run in runs:
                    run()

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            plainly()
            plainly()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        if not subject.capture:
            return plainly, len(runs), "its own graph"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                plainly()
        except Exception as error:
            torch.cuda.synchronize()
            return plainly, len(runs), f"one by one: capture failed ({first_line(error)})"
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay, len(runs), "graph"

    def seconds(self, sample: Callable[[], object]) -> float:
        """From before to behind it, on the device."""
        start, end = _event(), _event()
        start.record()
        sample()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _spread(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return statistics.median(samples), tenths[0], tenths[-1]
