"""Tunes the kernels of an artifact and builds it again with what was found."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

from ...passes.errors import InputError, TargetError, TuningError
from ...passes.plan import read_plan
from ...passes.progress import Progress, silent
from ...runtime.artifact import (
    MODEL,
    PLAN,
    check_destination,
    open_artifact,
)
from ...runtime.hardware import cpu_flags, usable_cores
from ...runtime.report import read_report
from ..kernels.targets import ROWS, Workload
from ..package import check_toolchain
from ..relax_build.compile import fused
from ..relax_build.schedule import unfitted
from ..relax_build.traces import function_key
from ..relax_build.walker import Walk
from ..relax_build.work import Work
from ..target import Target
from .cuda.tune import tune_on_gpu
from .database import add_records, database_path
from .device import Device, LocalDevice
from .functions import is_fixed
from .outcomes import function_row, kernel_row, named
from .rebuild import holds, rebuild
from .record import FunctionRecord, Record, processor_name, versions
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
            Kernels for GPUs are compiled, measured and merged as `cuda.tune` says.
        trials: candidates of each kernel and number of rows at most, in a random order that the
            seed of the artifact's plan gives. With 0 nothing is measured.
        rows: those of `kernels.targets.ROWS`, or of the rules for GPUs, to tune for; None is all.
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
    if trials < 0:
        raise InputError(f"trials must be 0 or more, got {trials}")
    if artifact.manifest.device == "cuda" and artifact.manifest.engine == "tvm":
        return tune_on_gpu(artifact, trials, rows, tracker, progress)
    wanted = _rows(rows)
    if artifact.manifest.engine != "tvm":
        raise TargetError(
            f"{path} is for {artifact.manifest.target}, whose kernels have no tilings to measure; "
            "compile for target llvm or cuda"
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
            results = _measure(search, tunable, wanted, processor_name(target), meter)
            functions = _measure_functions(search, searchable, processor_name(target), meter)
    tried = {record.key[:3] for record, _ in results} if trials else set(tunable)
    searched = {record.function for record, _ in functions} if trials else set(searchable)
    rebuilt = rebuild(artifact, model, target, work, list(rest))
    return {
        "processor": processor_name(target),
        "database": str(database_path()),
        "results": [kernel_row(record, found) for record, found in results],
        "functions": [function_row(record, found) for record, found in functions],
        "untunable": [named(workload) for workload in sorted(set(work) - tried)],
        "unsearchable": [
            {"name": rest[key][0], "reason": _NO_SCHEDULE if key in searchable else _OPEN_SIZES}
            for key in sorted(set(rest) - searched, key=lambda key: rest[key][0])
        ],
        "tuning": read_report(open_artifact(path)).get("tuning"),
        "rebuilt": rebuilt,
        "holds": holds(path, target) if rebuilt else None,
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
    processor: str,
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
            **_measured(search, outcome, processor),
        )

    outcomes = (
        (search.run(workload, each, number, meter.more), partial(kept, workload, number))
        for workload, each in work.items()
        for number in rows
    )
    return _keep(outcomes, search.trials, meter)


def _measure_functions(
    search: Search, functions: Mapping[str, tuple[str, Any]], processor: str, meter: _Meter
) -> list[tuple[FunctionRecord, Found]]:
    def kept(key: str, name: str, outcome: Found) -> FunctionRecord:
        return FunctionRecord(
            name=name,
            function=key,
            trace=outcome.fields.get("trace"),
            **_measured(search, outcome, processor),
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


def _measured(search: Search, outcome: Found, processor: str) -> dict[str, Any]:
    """What every record says, by the names of its fields."""
    comparison = outcome.comparison
    return {
        "processor": processor,
        "machine": search.devices[0].name,
        "median_us": comparison.median_us,
        "default_us": comparison.default_us,
        "spread": comparison.spread,
        "threads": search.devices[0].threads,
        "versions": versions("cpu"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
