"""Tunes the kernels of an artifact and builds it again with what was found."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

from ...passes.errors import InputError, TargetError, TuningError
from ...passes.plan import read_plan
from ...passes.progress import Progress, silent
from ...runtime.artifact import (
    MANIFEST,
    MODEL,
    MODULE,
    PLAN,
    WEIGHTS,
    Artifact,
    Manifest,
    check_destination,
    open_artifact,
    package_versions,
    write_artifact,
)
from ...runtime.hardware import cpu_flags, usable_cores
from ...runtime.report import read_report, write_report
from ..kernels.targets import ROWS, Workload
from ..package import check_toolchain, lower
from ..relax_build.compile import fused
from ..relax_build.schedule import unfitted
from ..relax_build.traces import function_key
from ..relax_build.walker import Walk
from ..relax_build.work import Work
from ..target import Target
from .choose import choose_records
from .database import add_records, database_path
from .device import Device, LocalDevice
from .functions import is_fixed
from .record import FunctionRecord, Record, cpu_name, versions
from .search import Found, Search
from .spaces import grid

AnyRecord = TypeVar("AnyRecord", Record, FunctionRecord)

_OPEN_SIZES = "its sizes are not fixed; compile the model with fixed shapes"
_NO_SCHEDULE = "MetaSchedule has no schedule of it that computes the same"


class _Meter:
    """Counts candidates for a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = self._whole = 0

    def more(self, number: int) -> None:
        """So many candidates more are done."""
        self._done += number
        self._progress(self._done, self._total, "tune")

    def more_in_all(self, number: int) -> None:
        """A search of so many candidates is over, however many of them there were."""
        self._whole += number
        self.more(self._whole - self._done)


def tune(
    path: str | Path,
    *,
    trials: int = 32,
    rows: Sequence[int] | None = None,
    threads: int | None = None,
    tracker: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measures tilings of an artifact's kernels, keeps the best ones and builds it with them.

    Args:
        path: of an artifact for a TVM target that holds `model.onnx`; it is replaced as a whole.
        trials: candidates of each kernel and number of rows at most, in a random order that the
            seed of the artifact's plan gives. With 0 nothing is measured.
        rows: those of `kernels.targets.ROWS` to tune for; None is all.
        threads: that a kernel uses; None is one for each core, or what a server is set to.
        tracker: `HOST:PORT` of TVM's RPC tracker, to measure on its free servers for LLVM's name
            of the target's processor instead of here.
        progress: is told what is done.

    Returns:
        A JSON object: "results", one for each kernel and number of rows; "functions", one for each
        that no rule fits, searched by MetaSchedule; "untunable" kernels, and "unsearchable"
        functions, each with its reason; "tuning", what the artifact now uses; whether it was
        "rebuilt", and whether it "holds": None where it was not rebuilt, or is for another
        processor.

    Raises:
        UndenseError: the artifact cannot be tuned, or nothing can be measured; says why.
    """
    artifact = open_artifact(path)
    check_destination(path)
    wanted = _rows(rows)
    if trials < 0:
        raise InputError(f"trials must be 0 or more, got {trials}")
    if artifact.manifest.engine != "tvm":
        raise TargetError(
            f"{path} is for {artifact.manifest.target}, whose kernels have no tilings to measure; "
            "compile with --target llvm"
        )
    target = Target.parse(artifact.manifest.target)
    check_toolchain(target)
    model = ir.load(artifact.file(MODEL))
    machine = target.tvm()
    with machine:
        walk = Walk(model)
        work = walk.builder.work
        rest = {
            function_key(function): (name, function)
            for name, function in unfitted(fused(walk)).items()
        }
    tunable = {
        workload: found
        for workload, found in work.items()
        if grid(found.tiling, workload[0], ROWS[0])
    }
    searchable = {key: found for key, found in rest.items() if is_fixed(found[1])}
    seed = read_plan(artifact.file(PLAN)).seed
    results: list[tuple[Record, Found]] = []
    functions: list[tuple[FunctionRecord, Found]] = []
    if trials and (tunable or searchable):
        with _devices(target, threads, tracker) as devices, machine:
            search = Search(devices, machine, trials, seed)
            meter = _Meter(progress, (len(tunable) * len(wanted) + len(searchable)) * trials)
            results = _measure(search, tunable, wanted, cpu_name(target), meter)
            functions = _measure_functions(search, searchable, cpu_name(target), meter)
    tried = {record.key[:3] for record, _ in results} if trials else set(tunable)
    searched = {record.function for record, _ in functions} if trials else set(searchable)
    rebuilt = _rebuild(artifact, model, target, list(rest))
    return {
        "cpu": cpu_name(target),
        "database": str(database_path()),
        "results": [_row(record, found) for record, found in results],
        "functions": [_function_row(record, found) for record, found in functions],
        "untunable": [_named(workload) for workload in sorted(set(work) - tried)],
        "unsearchable": [
            {"name": rest[key][0], "reason": _NO_SCHEDULE if key in searchable else _OPEN_SIZES}
            for key in sorted(set(rest) - searched, key=lambda key: rest[key][0])
        ],
        "tuning": read_report(open_artifact(path)).get("tuning"),
        "rebuilt": rebuilt,
        "holds": _holds(path, target) if rebuilt else None,
    }


def _rows(rows: Sequence[int] | None) -> list[int]:
    if rows is not None and (not rows or not set(rows) <= set(ROWS)):
        raise InputError(f"rows {list(rows)}: tilings are chosen for {', '.join(map(str, ROWS))}")
    return sorted(set(rows or ROWS))


@contextlib.contextmanager
def _devices(target: Target, threads: int | None, tracker: str | None) -> Iterator[list[Device]]:
    if tracker is not None:
        from .remote import remote_devices

        with remote_devices(tracker, str(target.tvm().attrs["mcpu"]), threads) as devices:
            yield devices
        return
    missing = set(target.cpu_features()) - (cpu_flags() or set())
    if missing:
        raise TuningError(
            f"code for {target} needs {', '.join(sorted(missing))}, which this processor lacks; "
            "measure on one that has it, with --tracker HOST:PORT"
        )
    yield [LocalDevice(threads or usable_cores())]


def _measure(
    search: Search,
    work: Mapping[Workload, Work],
    rows: Sequence[int],
    cpu: str,
    meter: _Meter,
) -> list[tuple[Record, Found]]:
    def kept(workload: Workload, number: int, outcome: Found) -> Record:
        kind, outputs, inputs = workload
        return Record(
            kind=kind,
            out_features=outputs,
            in_features=inputs,
            rows=number,
            fields=outcome.fields,
            **_measured(search, outcome, cpu),
        )

    outcomes = (
        (search.run(workload, each, number, meter.more), partial(kept, workload, number))
        for workload, each in work.items()
        for number in rows
    )
    return _keep(outcomes, search.trials, meter)


def _measure_functions(
    search: Search, functions: Mapping[str, tuple[str, Any]], cpu: str, meter: _Meter
) -> list[tuple[FunctionRecord, Found]]:
    def kept(key: str, name: str, outcome: Found) -> FunctionRecord:
        return FunctionRecord(
            name=name,
            function=key,
            trace=outcome.fields.get("trace"),
            **_measured(search, outcome, cpu),
        )

    outcomes = (
        (search.run_function(function, meter.more), partial(kept, key, name))
        for key, (name, function) in functions.items()
    )
    return _keep(outcomes, search.trials, meter)


def _keep(
    outcomes: Iterable[tuple[Found | None, Callable[[Found], AnyRecord]]],
    trials: int,
    meter: _Meter,
) -> list[tuple[AnyRecord, Found]]:
    """The records of what was found, each of them in the database before the next search."""
    found = []
    for outcome, record_of in outcomes:
        meter.more_in_all(trials)
        if outcome is None:
            continue
        record = record_of(outcome)
        # At once: what stops the search later does not take it away.
        add_records([record])
        found.append((record, outcome))
    return found


def _measured(search: Search, outcome: Found, cpu: str) -> dict[str, Any]:
    """What every record says, by the names of its fields."""
    comparison = outcome.comparison
    return {
        "cpu": cpu,
        "median_us": comparison.median_us,
        "default_us": comparison.default_us,
        "spread": comparison.spread,
        "threads": search.devices[0].threads,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _rebuild(artifact: Artifact, model: ir.Model, target: Target, met: Sequence[str]) -> bool:
    """Writes the artifact again with the records of today; False where it already has them."""
    report = read_report(artifact)
    had = report.get("tuning") or {}
    kernels = [tuple(kernel.values()) for kernel in had.get("kernels", ())]
    now = choose_records(target).report(kernels, met)
    if had and _as_text(now) == _as_text(had):
        return False

    def fill(folder: Path) -> Manifest:
        for name in artifact.manifest.files:
            if name not in (MODULE, WEIGHTS, MANIFEST):
                shutil.copyfile(artifact.path / name, folder / name)
        lowered = lower(model, target, folder, with_onnx=False)
        sizes = {**report["bytes"], "after": lowered.engine_bytes}
        write_report(folder, {**report, "bytes": sizes, **lowered.report()})
        bounds = {**artifact.manifest.dimension_bounds, **lowered.dimension_bounds}
        return replace(
            artifact.manifest,
            parameters=lowered.parameters,
            dimension_bounds=bounds,
            cpu_features=lowered.cpu_features,
            versions={**artifact.manifest.versions, **package_versions()},
        )

    write_artifact(artifact.path, fill)
    return True


def _holds(path: str | Path, target: Target) -> bool | None:
    """Whether the rebuilt artifact verifies; None where this machine cannot run it."""
    if not set(target.cpu_features()) <= (cpu_flags() or set()):
        return None
    from ...runtime.verify import verify

    return verify(Path(path)).holds


def _as_text(tuning: Mapping[str, Any]) -> str:
    """What decides the code, in a form that can be compared."""
    chosen = [tuning["records"], tuning.get("functions", [])]
    return json.dumps(chosen, sort_keys=True)


def _row(record: Record, found: Found) -> dict[str, Any]:
    return {
        **_named(record.key[:3]),
        "rows": record.rows,
        "fields": dict(record.fields),
        **_compared(found),
    }


def _function_row(record: FunctionRecord, found: Found) -> dict[str, Any]:
    return {"name": record.name, "searched": record.trace is not None, **_compared(found)}


def _compared(found: Found) -> dict[str, Any]:
    comparison = asdict(found.comparison)
    ratio = comparison.pop("ratio")
    return {"tried": found.tried, "wrong": found.wrong, **comparison, "speedup": 1 / ratio}


def _named(workload: Workload) -> dict[str, Any]:
    return dict(zip(("kind", "out_features", "in_features"), workload, strict=True))
