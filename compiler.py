"""The facade: capture → calibrate → plan → fit → rewrite → lower → package → load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .passes.errors import SchemeError, TargetError
from .passes.progress import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from .backend.expected import Expected
    from .backend.package import Lowered
    from .backend.target import Target
    from .frontend.samples import Samples
    from .passes.fit import FitResult
    from .passes.plan import Plan
    from .passes.sites import Refusal, Site
    from .passes.structures.base import Form
    from .runtime.artifact import Manifest
    from .runtime.session import Session

_VERIFY_SAMPLES = 2
_VERIFY_LENGTH = 64
"""Verification samples are cut to this length along each dynamic dimension."""


def compile(
    model: Any,
    args: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = "llvm",
    scheme: str | Sequence[Mapping[str, str]] = "auto",
    budget: Mapping[str, float] | str | None = None,
    calibration_dataset: Any = None,
    ignored_scope: Sequence[str] = (),
    plan: Plan | str | Path | None = None,
    seed: int = 0,
    portable: bool = False,
    with_onnx: bool = True,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> Session:
    """Compiles a trained model into a smaller module that runs on `target`, without retraining.

    Args:
        model: an `nn.Module` (with `args`), `ExportedProgram`, `.pt2` or `.onnx` path,
            `onnx.ModelProto` or `onnx_ir.Model`.
        args: example inputs of an `nn.Module`.
        dynamic_shapes: as `torch.export.export` takes them.
        target: `llvm` (this CPU, through TVM), `llvm -mcpu=...` or `ort-cpu`.
        scheme: one scheme text for all sites, `auto` (8-bit codes wherever they are smaller), or
            rules `[{"match": pattern, "scheme": text}]` of which the first match wins.
        budget: not there yet; plans are made by naming schemes.
        calibration_dataset: an iterable of dicts, tuples, arrays or tensors, or an `.npz` path.
            Without it fits are data-free, and the report says so.
        ignored_scope: names of sites that stay dense: globs, or `re:` and a regular expression.
        plan: a plan, or the path of a `plan.json`, to carry out exactly.
        seed: of every fit.
        portable: write `model.onnx` with standard operators only.
        with_onnx: for a TVM target, put `model.onnx` beside the compiled module.
        output: folder of the artifact; without it the artifact is temporary until `save`.
        progress: is told what is done; see `passes.progress`.

    Returns:
        The loaded module; its `report` says what was replaced by what, why and at what cost.

    Raises:
        UndenseError: one of its kinds, naming the layer or file, the cause and the remedy.
    """
    from .backend.target import Target
    from .frontend.load import load as capture
    from .runtime.artifact import check_destination, write_artifact
    from .runtime.session import load

    if budget is not None:
        raise SchemeError(
            "budget: plans made by measurement are not there yet; name the schemes with scheme=, "
            "rules or plan="
        )
    parsed = Target.parse(target)
    if portable and parsed.engine == "tvm" and not with_onnx:
        raise TargetError("portable is about model.onnx; keep it, or leave portable out")
    parsed.check_toolchain()
    with _destination(output) as folder:
        check_destination(folder)
        progress(0, 1, "capture")
        captured = capture(model, args, dynamic_shapes)
        progress(1, 1, "capture")
        job = _Job(parsed, "portable" if portable else "fast", with_onnx, seed, progress)
        decided = job.decide(captured, args, calibration_dataset, scheme, ignored_scope, plan)
        write_artifact(folder, lambda temporary: job.build(captured, decided, temporary))
        return load(folder)


@contextmanager
def _destination(output: str | Path | None) -> Iterator[Path]:
    """The folder to write: the caller's, or a temporary one that lives as long as the process."""
    if output is not None:
        yield Path(output)
        return
    import atexit

    parent = Path(tempfile.mkdtemp(prefix="undense-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    yield parent / "model.undense"
