"""Builds an artifact again with the records of today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...passes.errors import MissingDependencyError, TargetError
from ...runtime.artifact import (
    MANIFEST,
    MODULE,
    WEIGHTS,
    Artifact,
    Manifest,
    package_versions,
    write_artifact,
)
from ...runtime.hardware import cpu_flags
from ...runtime.report import read_report, write_report
from ..kernels.targets import Workload
from ..package import lower
from ..target import Target
from .choose import choose_records


def rebuild(
    artifact: Artifact,
    model: ir.Model,
    target: Target,
    work: Iterable[Workload],
    met: Iterable[str],
) -> bool:
    """Writes the artifact again with the records of today; False where it already has them.

    Args:
        artifact: that holds the model.
        model: of its `model.onnx`.
        target: that it is for.
        work: kernels that ask for tilings.
        met: keys of the functions that no rule fits.
    """
    report = read_report(artifact)
    had = report.get("tuning") or {}
    kernels = {*work, *(tuple(kernel.values()) for kernel in had.get("kernels", ()))}
    now = choose_records(target).report(kernels, met)
    if had and _as_text(now) == _as_text(had):
        return False

    def fill(folder: Path) -> Manifest:
        for name in artifact.manifest.files:
            if name not in (MODULE, WEIGHTS, MANIFEST):
                shutil.copyfile(artifact.path / name, folder / name)
        lowered = lower(model, target, folder, with_onnx=False)
        sizes = {**report["bytes"], **lowered.stored.report()}
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


def holds(path: str | Path, target: Target) -> bool | None:
    """Whether the rebuilt artifact verifies; None where this machine cannot run it."""
    if target.device == "cuda":
        if not has_gpu(target):
            return None
    elif not set(target.cpu_features()) <= (cpu_flags() or set()):
        return None
    from ...runtime.verify import verify

    return verify(Path(path)).holds


def has_gpu(target: Target) -> bool:
    """Whether a GPU that runs code for a target is here."""
    from ...runtime.cuda_runtime import cuda_device

    try:
        cuda_device(target.architectures, str(target))
    except (MissingDependencyError, TargetError):
        return False
    return True


def _as_text(tuning: Mapping[str, Any]) -> str:
    """What decides the code, in a form that can be compared."""
    chosen = [tuning["records"], tuning.get("functions", [])]
    return json.dumps(chosen, sort_keys=True)
