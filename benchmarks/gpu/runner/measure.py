"""One case at one size: checked, timed beside its baselines, and set against its floor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from .baselines import Options, Skipped, baselines
from .engine import Bound, Engine
from .floor import floor_of, work_of
from .machine import Peaks
from .random_data import random_input, random_weight
from .reference import Tensors, reference, relative_error, tolerance
from .spec import Case, Sizes
from .timing import Clock, Subject, first_line, interleaved

OURS = "undense"
_LEAST_SETS, _MOST_COPIES = 3, 64


def copies_beyond(cache_bytes: int, size: int) -> int:
    """Copies of `size` bytes that are together more than twice the cache, so that none stays."""
    return max(1, min(_MOST_COPIES, math.ceil((2 * cache_bytes + 1) / max(size, 1))))


def weight_copies(case: Case, cache_bytes: int, generator: torch.Generator) -> list[Tensors]:
    """Tensors of all weights, in as many copies as no cache holds."""
    size = sum(weight.bytes for weight in case.weights)
    count = copies_beyond(cache_bytes, size) if case.weights else 1
    return [
        {
            tensor.name: made
            for weight in case.weights
            for tensor, made in zip(weight.tensors, random_weight(weight, generator), strict=True)
        }
        for _ in range(count)
    ]


def input_sets(
    case: Case, sizes: Sizes, cache_bytes: int, generator: torch.Generator
) -> list[Tensors]:
    """Several sets of inputs; where there are no weights, as many as no cache holds."""
    count = _LEAST_SETS
    if not case.weights:
        size = sum(tensor.bytes(sizes) for tensor in case.inputs)
        count = max(count, copies_beyond(cache_bytes, size))
    return [
        {tensor.name: random_input(tensor, sizes, generator) for tensor in case.inputs}
        for _ in range(count)
    ]


def measured(
    engine: Engine,
    case: Case,
    sizes: Sizes,
    weights: Sequence[Tensors],
    peaks: Peaks,
    generator: torch.Generator,
    *,
    options: Options,
    clock: type[Clock] = Clock,
) -> dict[str, Any]:
    """A row of the results."""
    inputs = input_sets(case, sizes, peaks.cache_bytes, generator)
    count = max(len(weights), len(inputs))
    sets = [{**weights[i % len(weights)], **inputs[i % len(inputs)]} for i in range(count)]
    bound = [engine.bind(case, tensors, sizes) for tensors in sets]
    error = worst_error(engine, case, sets, bound)
    row = {
        "case": case.name,
        "kind": case.kind,
        "structure": case.structure,
        "dtype": case.dtype,
        "architecture": case.architecture,
        "sizes": dict(sizes),
        "shape": list(case.output.lengths(sizes)),
        "copies": len(weights),
        "inputs": len(inputs),
        "error": error,
        "tolerance": tolerance(case),
        "correct": error <= tolerance(case),
    }
    # What was compiled for other cases counts towards a limit, beyond which nothing is compiled.
    torch.compiler.reset()
    subjects = {OURS: Subject([one.run for one in bound], engine.stream)}
    skipped = {}
    for name, make in baselines(case, sizes, sets, options).items():
        try:
            subject = make()
            subject.runs[0]()
        except Skipped as reason:
            skipped[name] = str(reason)
        except Exception as error:
            skipped[name] = first_line(error)
        else:
            subjects[name] = subject
    timed = {name: asdict(found) for name, found in interleaved(subjects, clock=clock).items()}
    return row | {"times": timed, "skipped": skipped} | _against(case, sizes, timed, peaks)


def worst_error(
    engine: Engine, case: Case, sets: Sequence[Tensors], bound: Sequence[Bound]
) -> float:
    """Of the first and the last set, whose weights and inputs differ."""
    pairs = [(sets[i], bound[i]) for i in (0, -1)]
    with engine.stream():
        return max(
            relative_error(one.result(one.run()), reference(case, tensors))
            for tensors, one in pairs
        )


def _against(
    case: Case, sizes: Sizes, timed: Mapping[str, Mapping[str, Any]], peaks: Peaks
) -> dict[str, Any]:
    """How the time stands to the floor, to the bandwidth and to the baselines."""
    work = work_of(case, sizes)
    floor = floor_of(work, peaks.copy_bandwidth, peaks.rate(case.dtype))
    seconds = timed[OURS]["median"] * 1e-6
    return {
        "work": asdict(work),
        "floor": {"median": floor.seconds * 1e6, "bound": floor.bound},
        "of_floor": floor.seconds / seconds,
        "of_copy_bandwidth": work.weight_bytes / seconds / peaks.copy_bandwidth,
        "times_as_fast_as": {
            name: found["median"] / timed[OURS]["median"]
            for name, found in timed.items()
            if name != OURS
        },
    }


def planned(cases: Sequence[Case]) -> Iterator[tuple[Case, Sizes]]:
    """Each case at each of its sizes."""
    for case in cases:
        for sizes in case.sizes:
            yield case, sizes
