"""Says where the time of a run goes: a table of the functions that an engine calls."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError
from .bench import interleaved, machine
from .calls import Call
from .session import Session


def profile(
    session: Session, inputs: Mapping[str, NDArray[Any]], *, repeats: int = 20
) -> dict[str, Any]:
    """Runs a session on `inputs` several times and adds up the calls of each function.

    Args:
        session: of the artifact.
        inputs: by name.
        repeats: runs that are looked into.

    Returns:
        A JSON object: "functions", the longest first, each with "name", "workload", "calls" and
        "ms" a run, "share" and "builtin"; "builtin_share", that of the engine's bookkeeping;
        "traced_ms", the sum of all, with the price of looking, which small calls pay most of;
        "run_ms", the median of whole calls that nobody looks into.

    Raises:
        InputError: inputs that do not fit, or `repeats` below one.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    run = interleaved({"run": lambda: session.run(inputs)}, min(repeats, 10))["run"]
    rows = _rows(session.trace(inputs, repeats))
    total = sum(row["ms"] for row in rows)
    for row in rows:
        row["share"] = row["ms"] / total if total else 0.0
    return {
        "engine": session.engine,
        "functions": rows,
        "builtin_share": sum(row["share"] for row in rows if row["builtin"]),
        "traced_ms": total,
        "run_ms": run.median_ms,
        "runs": repeats,
        "threads": session.num_threads,
        "inputs": {name: list(np.shape(value)) for name, value in inputs.items()},
        "machine": machine(),
    }


def _rows(runs: Sequence[Sequence[Call]]) -> list[dict[str, Any]]:
    """For each function and workload the median over the runs."""
    seconds: dict[tuple[str, str, bool], list[float]] = {}
    counts: dict[tuple[str, str, bool], int] = {}
    for number, calls in enumerate(runs):
        for call in calls:
            key = (call.name, call.workload, call.builtin)
            seconds.setdefault(key, [0.0] * len(runs))[number] += call.seconds
            counts[key] = counts.get(key, 0) + 1
    rows = [
        {
            "name": name,
            "workload": workload,
            "calls": counts[name, workload, builtin] / len(runs),
            "ms": 1e3 * statistics.median(taken),
            "builtin": builtin,
        }
        for (name, workload, builtin), taken in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
