"""Searches candidates of a kernel or function: all of them briefly, then the best ones again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from ..kernels.targets import Workload
from ..relax_build.work import Work
from .device import Device
from .functions import function_arguments, traced_programs
from .measure import Bench, Candidate, Comparison
from .program import arguments, programs
from .spaces import candidates

_BRIEF, _LONG = 5, 25
"""Samples of each candidate, and of each that is left."""

_LEFT = 3
"""Candidates that are measured again: the best of many brief measurements is often mere luck."""

Progress = Callable[[int], None]
"""Is told how many candidates more were measured."""


@dataclass(frozen=True)
class Found:
    """The outcome for one kernel at one number of rows, or one function.

    Attributes:
        fields: of the best tiling that differ from the rule's, or the best `trace`; none if no
            candidate is faster by more than the spread.
        comparison: of the best candidate with the rule's choice.
        tried: how many candidates were measured.
        wrong: those of them whose outputs were not those of the rule's choice.
    """

    fields: Mapping[str, Any]
    comparison: Comparison
    tried: int
    wrong: int


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        devices: to measure on, each one candidate at a time.
        target: of TVM.
        trials: candidates of each kernel and number of rows at most.
        seed: of their order and of the inputs.
    """

    devices: Sequence[Device]
    target: Any
    trials: int
    seed: int

    def run(
        self, workload: Workload, work: Work, rows: int, progress: Progress = lambda _: None
    ) -> Found | None:
        """The best tiling of a kernel for up to `rows` rows; None if there is none to try."""
        tilings = candidates(work.tiling.serving(rows), workload[0], rows, self.seed)
        default, others = programs(workload, work, rows, tilings, self.trials, self.target)
        progress(self.trials - len(others))
        return self.best(default, others, arguments(work, default, rows, self.seed), progress)

    def run_function(self, function: Any, progress: Progress = lambda _: None) -> Found | None:
        """The best trace of MetaSchedule for a function that no rule fits; None if it has none."""
        default, others = traced_programs(
            function, self.trials, self.target, self.devices[0].threads, self.seed
        )
        progress(self.trials - len(others))
        return self.best(default, others, [function_arguments(function, self.seed)], progress)

    def best(
        self,
        default: Candidate,
        others: Sequence[Candidate],
        arrays: Sequence[Sequence[NDArray[Any]]],
        progress: Progress = lambda _: None,
    ) -> Found | None:
        """The best of some candidates; None if there is none whose outputs are right.

        Args:
            default: the rule's choice.
            others: to compare with it.
            arrays: arguments of each of their functions, the output last.
            progress: is told of each that was measured.
        """
        if not others:
            return None
        benches = [Bench(device, self.target, default, arrays) for device in self.devices]
        brief = list[tuple[Candidate, Comparison]]()
        for candidate, comparison in _compare(benches, others, _BRIEF):
            if comparison is not None:
                brief.append((candidate, comparison))
            progress(1)
        left = [program for program, _ in sorted(brief, key=_ratio)[:_LEFT]]
        again = [(p, c) for p, c in _compare(benches, left, _LONG) if c is not None]
        if not again:
            return None
        best, comparison = min(again, key=_ratio)
        fields = best.fields if comparison.faster else {}
        return Found(fields, comparison, len(others), len(others) - len(brief))


def _compare(
    benches: Sequence[Bench], candidates: Sequence[Candidate], samples: int
) -> Iterator[tuple[Candidate, Comparison | None]]:
    """Every candidate beside the rule's choice, on whichever bench is free."""
    if len(benches) == 1:
        # In this thread, whose pool of TVM has the number of threads that was asked for.
        for candidate in candidates:
            yield candidate, benches[0].compare(candidate, samples)
        return
    free = SimpleQueue[Bench]()
    for bench in benches:
        free.put(bench)

    def compare(candidate: Candidate) -> Comparison | None:
        bench = free.get()
        try:
            return bench.compare(candidate, samples)
        finally:
            free.put(bench)

    with ThreadPoolExecutor(len(benches)) as pool:
        yield from zip(candidates, pool.map(compare, candidates), strict=True)


def _ratio(pair: tuple[Candidate, Comparison]) -> float:
    return pair[1].ratio
