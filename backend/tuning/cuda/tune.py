"""Tunes an artifact for GPUs: compile candidates, measure them where the GPU is, merge."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ....passes.errors import InputError, TargetError, TuningError
from ....passes.plan import read_plan
from ....passes.progress import Progress, silent
from ....runtime.artifact import MODEL, PLAN, Artifact, check_destination, open_artifact
from ....runtime.atomic import move_into_place, temporary_sibling, termination_as_exception
from ....runtime.report import read_report
from ...cuda.nvcc import check_nvcc
from ...kernels.cuda.products import Ruled
from ...kernels.targets import Workload
from ...package import check_toolchain
from ...relax_build.walker import Walk
from ...target import Target
from ..database import add_records, database_path
from ..outcomes import kernel_row, named
from ..rebuild import has_gpu, holds, rebuild
from ..record import Record, processor_name
from ..search import Found
from .folder import SCRIPT, write_folder
from .results import read_results
from .runner.measure import RESULTS
from .servers import measured_on_servers

_FAILURES = 10
"""Runs of the script that a candidate may end, in one tuning."""


@dataclass(frozen=True)
class Opened:
    """An artifact for GPUs with its kernels.

    Attributes:
        artifact: as it is.
        target: that it is for.
        model: of its `model.onnx`.
        work: the products with their rules.
    """

    artifact: Artifact
    target: Target
    model: ir.Model
    work: dict[Workload, Ruled]

    @property
    def seed(self) -> int:
        """Of its plan."""
        return read_plan(self.artifact.file(PLAN)).seed

    def rows(self, wanted: Sequence[int] | None) -> list[int]:
        """The numbers of rows to tune for.

        Raises:
            InputError: no tiling is chosen for one of them.
        """
        known = sorted({number for each in self.work.values() for number in each.rows})
        if wanted is not None and (not wanted or not set(wanted) <= set(known)):
            named_rows = ", ".join(map(str, known))
            raise InputError(f"rows {list(wanted)}: tilings are chosen for {named_rows}")
        return sorted(set(wanted or known))


def export_candidates(
    path: str | Path,
    folder: str | Path,
    *,
    trials: int = 32,
    rows: Sequence[int] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes a folder with compiled candidates and the script that measures them.

    Args:
        path: of an artifact for target cuda that holds `model.onnx`.
        folder: to write; it must not exist.
        trials: candidates of each kernel and number of rows at most, in a random order that the
            seed of the artifact's plan gives.
        rows: to tune for, of those that the rules choose tilings for; None is all.
        progress: is told what is done.

    Returns:
        A JSON object: the "folder", "kernels" with the number of their candidates, and the
        "command" that measures them.

    Raises:
        UndenseError: the artifact cannot be tuned; says why.
    """
    given, opened = Path(folder), _opened(open_artifact(path))
    if given.exists():
        raise InputError(f"{folder} exists already: give --export a folder that does not")
    if trials < 1:
        raise InputError(f"--export needs trials of 1 or more, got {trials}")
    wanted = opened.rows(rows)
    check_nvcc(opened.target.architectures)
    with termination_as_exception(), temporary_sibling(given) as scratch:
        document = _write(opened, scratch, wanted, trials, progress)
        move_into_place(scratch, given)
    return {
        "folder": str(folder),
        "target": document["target"],
        "kernels": [
            {
                **{name: kernel[name] for name in ("kind", "out_features", "in_features", "rows")},
                "candidates": len(kernel["candidates"]) - 1,
                "left_out": kernel["left_out"],
            }
            for kernel in document["kernels"]
        ],
        "command": f"python {given / SCRIPT}",
    }


def merge_results(path: str | Path, results: str | Path) -> dict[str, Any]:
    """Puts what was measured into the database, and builds the artifact with it.

    Args:
        path: of the artifact.
        results: `results.json` in the folder that was measured.

    Returns:
        As `artifact.tune`.

    Raises:
        UndenseError: the results are not for this artifact and version, or damaged; says which.
    """
    artifact = open_artifact(path)
    check_destination(path)
    opened = _opened(artifact)
    return _merged(opened, read_results(Path(results), opened.target), measured=True)


def tune_on_gpu(
    artifact: Artifact,
    trials: int,
    rows: Sequence[int] | None,
    tracker: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Compiles, measures and merges in one go, where there is a GPU; see `artifact.tune`."""
    opened = _opened(artifact)
    wanted = opened.rows(rows)
    if not trials:
        return _merged(opened, [], measured=False)
    check_nvcc(opened.target.architectures)
    if tracker is not None:
        kernels = len(opened.work) * len(wanted)
        found = measured_on_servers(
            opened.work.values(), wanted, opened.target, tracker, trials, opened.seed,
            lambda done: progress(done, kernels, "tune"),
        )  # fmt: skip
        return _merged(opened, found, measured=True)
    if not has_gpu(opened.target):
        raise TuningError(
            f"no GPU here runs code for {opened.target}: take --export FOLDER to a machine that "
            "has one, or measure with --tracker HOST:PORT"
        )
    with tempfile.TemporaryDirectory(prefix="undense-tune-") as scratch:
        folder = Path(scratch)
        document = _write(opened, folder, wanted, trials, progress)
        _measure(folder, lambda done: progress(done, len(document["kernels"]), "measure"))
        found = read_results(folder / RESULTS, opened.target)
    return _merged(opened, found, measured=True)


def _opened(artifact: Artifact) -> Opened:
    manifest = artifact.manifest
    if manifest.device != "cuda" or manifest.engine != "tvm":
        raise TargetError(
            f"{artifact.path} is for {manifest.target}: --export and --merge are for target cuda"
        )
    graphs = read_report(artifact).get("cuda_graphs", False)
    target = Target.parse(manifest.target).with_graphs(graphs)
    check_toolchain(target)
    model = ir.load(artifact.file(MODEL))
    with target.tvm():
        work = Walk(model).builder.work
    ruled = {key: each.tiling for key, each in work.items() if isinstance(each.tiling, Ruled)}
    return Opened(artifact, target, model, ruled)


def _write(
    opened: Opened, folder: Path, rows: Sequence[int], trials: int, progress: Progress
) -> dict[str, Any]:
    return write_folder(
        folder,
        opened.work.values(),
        rows,
        opened.target,
        trials,
        opened.seed,
        lambda done, total: progress(done, total, "compile"),
    )


def _measure(folder: Path, progress: Callable[[int], None]) -> None:
    """Runs the script until it is through; a candidate that fails ends a run and is left out."""
    done = 0
    for _ in range(_FAILURES):
        command = [sys.executable, str(folder / SCRIPT), "--seconds", "inf"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            last = ""
            for line in process.stdout:
                last, done = line.strip(), done + 1
                progress(done)
            said = process.stderr.read().strip().splitlines()
        if process.returncode == 0:
            return
        if process.returncode != 1:
            cause = (said or ["it said nothing"])[-1]
            raise TuningError(f"measuring on the GPU here failed ({cause}): see undense doctor")
    raise TuningError(f"{_FAILURES} candidates failed on the GPU here, the last time: {last}")


def _merged(
    opened: Opened, found: Sequence[tuple[Record, Found]], *, measured: bool
) -> dict[str, Any]:
    """Keeps the records and says what became of them."""
    add_records([record for record, _ in found])
    path, target = opened.artifact.path, opened.target
    rebuilt = rebuild(opened.artifact, opened.model, target, opened.work, _functions(opened))
    tried = {record.key[:3] for record, _ in found} if measured else set(opened.work)
    return {
        "processor": processor_name(target),
        "database": str(database_path()),
        "results": [kernel_row(record, each) for record, each in found],
        "functions": [],
        "untunable": [named(workload) for workload in sorted(set(opened.work) - tried)],
        "unsearchable": [],
        "tuning": read_report(open_artifact(path)).get("tuning"),
        "rebuilt": rebuilt,
        "holds": holds(path, target) if rebuilt else None,
    }


def _functions(opened: Opened) -> list[str]:
    """Keys of functions that no rule fits, which the artifact knows."""
    had = read_report(opened.artifact).get("tuning") or {}
    return [entry["function"] for entry in had.get("functions", ())]
