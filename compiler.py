"""The facade: capture → calibrate → plan → fit → rewrite → lower → package → load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .passes.errors import SchemeError
from .passes.progress import Progress, silent

if TYPE_CHECKING:
    from .passes.plan import Plan
    from .runtime.session import Session


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
    from .backend.build import BuildOptions, build_artifact
    from .backend.target import Target
    from .runtime.session import load

    if budget is not None:
        raise SchemeError(
            "budget: plans made by measurement are not there yet; name the schemes with scheme=, "
            "rules or plan="
        )
    options = BuildOptions(
        target=Target.parse(target),
        scheme=scheme,
        ignored_scope=tuple(ignored_scope),
        plan=plan,
        seed=seed,
        form="portable" if portable else "fast",
        with_onnx=with_onnx,
        version=__version__,
    )
    options.target.check_toolchain()
    with _destination(output) as folder:
        from .frontend.load import load as capture

        captured = capture(model, args, dynamic_shapes)
        build_artifact(captured, args, calibration_dataset, options, folder, progress)
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
