"""The facade: `compile` a model, or `plan` what a compile would make of it."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .passes.budget import BATCHES, PLAN_SECONDS
from .passes.progress import Progress, silent

if TYPE_CHECKING:
    from .backend.target import Target
    from .job import Job
    from .passes.cache import Cache
    from .passes.plan import Plan
    from .passes.structures.base import Form
    from .planning import Planned
    from .runtime.artifact import Manifest
    from .runtime.session import Session
    from .validation import ValidationFunction


def compile(
    model: Any,
    args: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = "llvm",
    dtype: str | None = None,
    scheme: str | Sequence[Mapping[str, str]] = "auto",
    budget: Mapping[str, float] | str | None = None,
    calibration_dataset: Any = None,
    ignored_scope: Sequence[str] = (),
    batch: Sequence[int] = BATCHES,
    plan_time: float = PLAN_SECONDS,
    validation_dataset: Any = None,
    validation_fn: ValidationFunction | None = None,
    drop_type: str = "absolute",
    plan: Plan | Planned | str | Path | None = None,
    seed: int = 0,
    lossless: bool | Sequence[str] = True,
    portable: bool = False,
    kernels: str | None = None,
    with_onnx: bool = True,
    tuned: bool = True,
    use_cuda_graph: bool | Sequence[str] = False,
    cache: Cache | str | Path | bool = True,
    scheduler: str | None = None,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> Session:
    """Compiles a trained model into a smaller module that runs on `target`, without retraining.

    Args:
        model: an `nn.Module` (with `args`), `ExportedProgram`, `.pt2` or `.onnx` path,
            `onnx.ModelProto` or `onnx_ir.Model`.
        args: example inputs of an `nn.Module`.
        dynamic_shapes: as `torch.export.export` takes them.
        target: `llvm` (this CPU, through TVM), `llvm -mcpu=...`, `cuda`, `cuda -arch=sm_80,sm_90`,
            `cuda -libs=cublas` (dense layers of many rows by cuBLAS), `ort-cpu` or `ort-cuda`.
        dtype: `float16` or `bfloat16` to convert a float32 model to before anything else is
            decided, as `.half()` does: weights, activations, inputs and outputs. Sums and
            exponentials stay float32.
        scheme: one scheme text for all sites, or rules `[{"match": pattern, "scheme": text}]` of
            which the first match wins. `auto` plans by measurement, within the budget; without
            calibration data it is 8-bit codes wherever they are smaller.
        budget: limits for `auto`, which hold together: `size_ratio`, `latency_ratio`,
            `effective_bits` and `max_drop`, as a mapping or `"size_ratio=0.25,max_drop=0.01"`.
            Without one a distortion of 0.01 is allowed for the least bytes and time.
        batch: for `auto`, the products of the dynamic dimensions of a call (tokens, or samples) at
            which kernels are timed.
        plan_time: for `auto`, seconds that measuring distortions may take.
        validation_dataset: what `validation_fn` is given; it must be readable more than once.
        validation_fn: `validation_fn(model, validation_dataset)` is the metric of a model that is
            called like the module that is returned, with its types; higher is better. `max_drop`
            (0.01 without a budget) bounds what the metric of the compiled model is below that of
            the dense one: the layers that change the outputs the most stay dense until it holds.
            Without a function `max_drop` bounds the distortion of the outputs.
        drop_type: of the metric: `absolute`, or `relative` to that of the dense model.
        calibration_dataset: an iterable of dicts, tuples, arrays or tensors, or an `.npz` path.
            Without it fits are data-free, and the report says so.
        ignored_scope: names of sites that stay dense: globs, or `re:` and a regular expression.
        plan: what `plan` returned, or the path of a `plan.json`, to carry out exactly.
        seed: of every fit.
        lossless: exact rewrites before sites are found. True merges linears with nothing between
            and absorbs scales of their outputs; False leaves the model as it is; names choose
            among those of `passes.lossless.LOSSLESS`. The report has a sentence for each, and why
            one that was named left what it nearly fitted.
        portable: for target `ort-cpu`, write `model.onnx` with standard operators only.
        kernels: `tvm` has TVM compile the structured layers for ONNX Runtime on this CPU, instead
            of running them by its own operators; for target `ort-cpu`.
        with_onnx: for a TVM target, put `model.onnx` beside the compiled module.
        tuned: give kernels the tilings that `undense tune` has measured for this processor, or
            that are shipped for its kind. The report has those used.
        use_cuda_graph: for target `cuda`: names the dynamic dimensions whose lengths come again and
            again (for decoding the batch and the tokens, not the cache, which grows). What depends
            on no others is launched as CUDA graphs, its memory planned once for their upper
            bounds, which may be given ("batch=8"). True is all dimensions with an upper bound.
        cache: statistics, fits and measurements of before are looked up, and new ones kept: in
            `$UNDENSE_CACHE`, else the user's cache, in the folder that is named, or not (False).
        scheduler: address of a dask scheduler whose workers do the fits; this machine's processors
            do if None.
        output: folder of the artifact; without it the artifact is temporary until `save`.
        progress: is told what is done; see `passes.progress`.

    Returns:
        The loaded module; its `report` says what was replaced by what, why and at what cost. For a
        GPU that this machine cannot run it on, an `Unloaded` one, which says why when it is called.

    Raises:
        UndenseError: one of its kinds, naming the layer or file, the cause and the remedy.
    """
    _check_installed()
    from .accuracy_control import AccuracyControl
    from .backend.package import check_toolchain
    from .candidate import Candidate
    from .passes.request import Request
    from .planning import Planned
    from .runtime.artifact import write_artifact
    from .runtime.atomic import temporary_sibling
    from .runtime.unloaded import load_if_possible
    from .validation import Validation

    if isinstance(plan, Planned):
        plan = plan.plan
    validation = Validation.checked(validation_fn, validation_dataset, drop_type)
    validated = validation is not None
    request = Request.checked(
        scheme, ignored_scope, plan, budget, batch, plan_time, validated=validated
    )
    parsed = _target(target, kernels, use_cuda_graph, with_onnx=with_onnx, tuned=tuned)
    job = _job(
        parsed,
        parsed.form(portable=portable),
        dtype,
        seed,
        lossless,
        cache,
        scheduler,
        progress,
        with_onnx=with_onnx,
    )
    _check_files(model, calibration_dataset, output)
    check_toolchain(parsed)

    def fill(folder: Path) -> Manifest:
        captured = job.capture(model, args, dynamic_shapes)
        if validation is None or request.budget is None:
            decided = job.decide(captured, args, calibration_dataset, request)
            if decided.whole is None:
                return job.build(captured, decided, folder)
            with temporary_sibling(folder) as place:
                built = Candidate.build(
                    place / "artifact", lambda inner: job.build(captured, decided, inner)
                )
                latency = built.latency(decided.whole, request.budget, progress)
                return built.move(folder, {"latency": latency})
        control = AccuracyControl(job, captured, validation, request.budget)
        decided = job.decide(captured, args, calibration_dataset, request, control)
        return control.build(decided, folder)

    with _destination(output) as folder:
        write_artifact(folder, fill)
        gc.collect()  # graphs are cyclic: the dense weights would stay beside the new ones
        return load_if_possible(folder)


def plan(
    model: Any,
    args: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    calibration_dataset: Any,
    dynamic_shapes: Any = None,
    target: str = "llvm",
    dtype: str | None = None,
    scheme: str | Sequence[Mapping[str, str]] = "auto",
    budget: Mapping[str, float] | str | None = None,
    ignored_scope: Sequence[str] = (),
    batch: Sequence[int] = BATCHES,
    plan_time: float = PLAN_SECONDS,
    point: int | None = None,
    seed: int = 0,
    lossless: bool | Sequence[str] = True,
    kernels: str | None = None,
    cache: Cache | str | Path | bool = True,
    scheduler: str | None = None,
    progress: Progress = silent,
) -> Planned:
    """Plans what `compile` would do, and predicts size, latency and drop, writing no model.

    Sites whose scheme is named keep it, and what it costs is measured as well.

    The arguments are those of `compile`; `point` is one of the Pareto table, from 1, instead of
    what the budget chooses.

    Returns:
        The plan, which `compile` takes; its report has a table of up to five points to choose from.

    Raises:
        UndenseError: as `compile`.
    """
    _check_installed()
    from .backend.package import check_toolchain
    from .passes.errors import SchemeError
    from .passes.request import Request

    request = Request.checked(scheme, ignored_scope, None, budget, batch, plan_time, point)
    request = replace(request, predicts=True)
    if calibration_dataset is None:
        raise SchemeError(
            "plan: what forms cost the outputs is measured on calibration data; give some"
        )
    parsed = _target(target, kernels)
    job = _job(
        parsed, parsed.form(portable=False), dtype, seed, lossless, cache, scheduler, progress
    )
    _check_files(model, calibration_dataset, None)
    check_toolchain(parsed)
    captured = job.capture(model, args, dynamic_shapes)
    decided = job.decide(captured, args, calibration_dataset, request)
    planned = decided.planned
    assert planned is not None, "there is data, and schemes by name are measured too"
    notes = [*decided.notes, *planned.report["notes"]]
    return replace(planned, report={**planned.report, "notes": notes})


def _check_installed() -> None:
    """Refuses where nothing but artifacts can be run, before an import fails."""
    from importlib.util import find_spec

    from .passes.errors import MissingDependencyError

    missing = [name for name in ("onnx", "onnx_ir", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"compiling needs {', '.join(missing)}: pip install 'undense[cpu]'"
        )


def _target(
    text: str,
    kernels: str | None = None,
    use_cuda_graph: bool | Sequence[str] = False,
    *,
    with_onnx: bool = True,
    tuned: bool = True,
) -> Target:
    from .backend.target import Target

    parsed = Target.parse(text).with_kernels(kernels).with_graphs(use_cuda_graph)
    parsed.check_onnx(wanted=with_onnx)
    return replace(parsed, tuned=tuned)


def _job(
    target: Target,
    form: Form,
    dtype: str | None,
    seed: int,
    lossless: bool | Sequence[str],
    cache: Cache | str | Path | bool,
    scheduler: str | None,
    progress: Progress,
    *,
    with_onnx: bool = True,
) -> Job:
    """The job of options that are checked here, as far as that goes without a model."""
    from .job import Job, Rewrites
    from .passes.errors import SchemeError
    from .passes.lossless import chosen
    from .passes.precision import parse_dtype

    wanted = None if dtype is None else parse_dtype(dtype)
    if wanted is not None:
        target.check_dtype(wanted)
    if seed < 0:
        raise SchemeError(f"seed {seed}: give 0 or more")
    rewrites = Rewrites(chosen(lossless), named=not isinstance(lossless, bool))
    return Job(
        target,
        form,
        wanted,
        with_onnx,
        seed,
        rewrites,
        _cache(cache),
        scheduler,
        progress,
    )


def _check_files(model: Any, dataset: Any, output: str | Path | None) -> None:
    """Before the toolchain, which takes seconds to look at."""
    from .frontend.load import check_path
    from .frontend.samples import check_archive
    from .runtime.artifact import check_destination

    check_path(model)
    check_archive(dataset)
    if output is not None:
        check_destination(output)


def _cache(named: Cache | str | Path | bool) -> Cache | None:
    from .passes.cache import Cache
    from .passes.errors import InputError

    if isinstance(named, bool):
        return Cache() if named else None
    if not isinstance(named, str | Path | Cache):
        raise InputError(f"cache is a {type(named).__name__}; give a folder, True or False")
    return named if isinstance(named, Cache) else Cache(named)


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
