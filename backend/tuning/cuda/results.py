"""What was measured where the GPU is, checked and made into records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....passes.errors import InputError, TuningError, cause_of
from ....runtime.cuda_runtime import can_run
from ...target import Target
from ..measure import Comparison
from ..record import Record, processor_name, record_from_json, versions
from ..search import Found
from .folder import FORMAT, digest
from .runner.measure import CANDIDATES

_DAMAGE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading JSON of another form raises."""


def read_results(path: Path, target: Target) -> list[tuple[Record, Found]]:
    """The records of a `results.json`, each with its outcome.

    Args:
        path: of the file; `candidates.json` lies beside it.
        target: of the artifact that takes them.

    Raises:
        InputError: a file is missing, damaged, or for another target.
        TuningError: the candidates were made by other versions, or measured on a GPU that the
            target is not for.
    """
    results = _read(path, "measure again")
    candidates = _read(path.with_name(CANDIDATES), "export it again")
    _check(candidates, path.with_name(CANDIDATES), target)
    try:
        if results["candidates"] != candidates["digest"]:
            raise InputError(
                f"{path} was measured with other candidates than those beside it: put it into the "
                "folder that it was measured with"
            )
        if not can_run(results["capability"], target.architectures):
            raise TuningError(
                f"{path} was measured on {results['gpu']} of compute capability "
                f"{results['capability']}, which {target} is not for"
            )
        entries = [entry for entry in results["kernels"] if entry["best"] is not None]
        return [_record(entry, candidates, results, target) for entry in entries]
    except _DAMAGE as error:
        raise _damaged(path, error, "measure again") from error


def _read(path: Path, remedy: str) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: --merge takes results.json in the folder of --export"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, error, remedy) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}, which this undense reads: {remedy}")
    return document


def _check(candidates: Mapping[str, Any], path: Path, target: Target) -> None:
    try:
        damaged = candidates["digest"] != digest(candidates)
        made_for, made_by = candidates["target"], candidates["versions"]
        here = versions("cuda")
        old = [name for name in ("apache-tvm", "schedules") if made_by[name] != here[name]]
    except _DAMAGE as error:
        raise _damaged(path, error, "export it again") from error
    if damaged:
        raise InputError(f"{path} was changed after it was exported: export it again")
    if made_for != str(target):
        raise InputError(f"{path} is for {made_for!r} and the artifact for {str(target)!r}")
    if old:
        raise TuningError(
            f"{path} was made by {old[0]} {made_by[old[0]]} and {here[old[0]]} is here: "
            "export it again"
        )


def _record(
    entry: Mapping[str, Any],
    candidates: Mapping[str, Any],
    results: Mapping[str, Any],
    target: Target,
) -> tuple[Record, Found]:
    best = entry["best"]
    if min(entry["kernel"], best["candidate"]) < 0:
        raise ValueError("the number of a kernel or candidate is negative")
    kernel = candidates["kernels"][entry["kernel"]]
    comparison = Comparison(
        *(float(best[name]) for name in ("median_us", "default_us", "ratio", "spread"))
    )
    fields = kernel["candidates"][best["candidate"]]["fields"] if comparison.faster else {}
    wrong = len(entry["wrong"])
    record = Record(
        kind=kernel["kind"],
        out_features=kernel["out_features"],
        in_features=kernel["in_features"],
        rows=kernel["rows"],
        fields=fields,
        processor=processor_name(target),
        machine=str(results["gpu"]),
        median_us=comparison.median_us,
        default_us=comparison.default_us,
        spread=comparison.spread,
        threads=1,
        versions=dict(candidates["versions"]),
        date=str(results["date"]),
    )
    record_from_json(record.to_json())  # what the database would refuse to read again
    return record, Found(fields, comparison, len(entry["brief"]) + wrong, wrong)


def _damaged(path: Path, error: Exception, remedy: str) -> InputError:
    return InputError(f"{path} is damaged ({cause_of(error)}): {remedy}")
