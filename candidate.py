"""An artifact that is run and measured before its files become those that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .passes.pricing import SAME_TIME
from .runtime.artifact import Artifact, write_artifact
from .runtime.report import read_report, write_report
from .runtime.session import Session
from .runtime.unloaded import Unloaded, load_if_possible

if TYPE_CHECKING:
    from .backend.kernel_times import WholeRun
    from .passes.budget import Budget
    from .passes.progress import Progress
    from .runtime.artifact import Manifest


@dataclass(frozen=True)
class Candidate:
    """An artifact in a temporary folder.

    Attributes:
        artifact: whole.
        session: on it; an `Unloaded` one for a GPU that is not here.
        notes, warnings: on what was measured of it, which `move` adds to those of the report.
    """

    artifact: Artifact
    session: Session | Unloaded
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, path: Path, fill: Callable[[Path], Manifest]) -> Candidate:
        """Writes an artifact by `fill(folder)` and loads it."""
        return cls(write_artifact(path, fill), load_if_possible(path))

    def latency(
        self, whole: WholeRun | None, budget: Budget | None, progress: Progress
    ) -> dict[str, Any] | None:
        """A run of the artifact beside one of the dense model, by batch, as JSON.

        None without a model to time it beside, or where the artifact does not run. Batches at which
        a run fails are left out, and `notes` say why; `warnings` say where it takes longer than
        the budget allows.
        """
        if whole is None or isinstance(self.session, Unloaded):
            return None
        measured, notes = whole.beside(self.session, progress)
        self.notes.extend(notes)
        most = None if budget is None else budget.latency_ratio
        for batch, found in measured.items():
            if most is not None and found.ratio > SAME_TIME * most:
                self.warnings.append(
                    f"latency_ratio={most:g} was planned and is not kept: at batch {batch} a run "
                    f"takes {found.ratio:.2f} times that of the dense model"
                )
        return {str(batch): found.report() for batch, found in measured.items()}

    def move(self, folder: Path, changes: Mapping[str, Any]) -> Manifest:
        """Moves the files to `folder`, with these entries of the report in place of theirs."""
        report = {**read_report(self.artifact), **changes}
        report["notes"] = [*report["notes"], *self.notes]
        report["warnings"] = [*report["warnings"], *self.warnings]
        for name in self.artifact.manifest.files:
            (self.artifact.path / name).rename(folder / name)
        write_report(folder, report)
        return self.artifact.manifest
