"""Tunes the kernels of an artifact and builds it again with what was found."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
from ..relax_build.walker import Walk
from ..relax_build.work import Work
from ..target import Target
from .choose import choose_records
from .database import add_records, database_path
from .device import Device, LocalDevice
from .record import Record, cpu_name, versions
from .search import Found, Search
from .spaces import grid


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
        A JSON object: "results", one for each kernel and number of rows; "untunable" kernels;
        "tuning", what the artifact now uses; whether it was "rebuilt", and whether it "holds":
        None where it was not rebuilt, or is for another processor.

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
        work = Walk(model).builder.work
    tunable = {
        workload: found
        for workload, found in work.items()
        if grid(found.tiling, workload[0], ROWS[0])
    }
    seed = read_plan(artifact.file(PLAN)).seed
    results: list[tuple[Record, Found]] = []
    if trials and tunable:
        with _devices(target, threads, tracker) as devices:
            search = Search(devices, machine, trials, seed)
            results = _measure(search, tunable, wanted, cpu_name(target), progress)
    rebuilt = _rebuild(artifact, model, target)
    return {
        "cpu": cpu_name(target),
        "database": str(database_path()),
        "results": [_row(record, found) for record, found in results],
        "untunable": [_named(workload) for workload in sorted(set(work) - set(tunable))],
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
    progress: Progress,
) -> list[tuple[Record, Found]]:
    total, done = len(work) * len(rows) * search.trials, 0

    def more(number: int) -> None:
        nonlocal done
        done += number
        progress(done, total, "tune")

    found = []
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for (kind, outputs, inputs), each in work.items():
        for number in rows:
            before = done
            outcome = search.run((kind, outputs, inputs), each, number, more)
            more(before + search.trials - done)
            if outcome is None:
                continue
            comparison = outcome.comparison
            record = Record(
                kind=kind,
                out_features=outputs,
                in_features=inputs,
                rows=number,
                cpu=cpu,
                fields=outcome.fields,
                median_us=comparison.median_us,
                default_us=comparison.default_us,
                spread=comparison.spread,
                threads=search.devices[0].threads,
                versions=versions(),
                date=today,
            )
            # At once: what stops the search later does not take it away.
            add_records([record])
            found.append((record, outcome))
    return found


def _rebuild(artifact: Artifact, model: ir.Model, target: Target) -> bool:
    """Writes the artifact again with the records of today; False where it already has them."""
    report = read_report(artifact)
    had = report.get("tuning") or {}
    kernels = [tuple(kernel.values()) for kernel in had.get("kernels", ())]
    now = json.dumps(choose_records(target).report(kernels)["records"], sort_keys=True)
    if had and now == json.dumps(had["records"], sort_keys=True):
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


def _row(record: Record, found: Found) -> dict[str, Any]:
    comparison = asdict(found.comparison)
    ratio = comparison.pop("ratio")
    return {
        **_named(record.key[:3]),
        "rows": record.rows,
        "tried": found.tried,
        "wrong": found.wrong,
        "fields": dict(record.fields),
        **comparison,
        "speedup": 1 / ratio,
    }


def _named(workload: Workload) -> dict[str, Any]:
    return dict(zip(("kind", "out_features", "in_features"), workload, strict=True))
