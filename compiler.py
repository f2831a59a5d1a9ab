"""The facade: capture → calibrate → plan → fit → rewrite → lower → package → load."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .passes.errors import SchemeError
from .passes.progress import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from .backend.expected import Expected
    from .backend.package import Lowered
    from .backend.stored import Stored
    from .backend.target import Target
    from .frontend.sample_check import Sample
    from .frontend.samples import Samples
    from .passes.cache import Cache
    from .passes.fit import FitResult
    from .passes.plan import Plan
    from .passes.sites import Refusal, Site
    from .passes.stats import Stats
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
    dtype: str | None = None,
    scheme: str | Sequence[Mapping[str, str]] = "auto",
    budget: Mapping[str, float] | str | None = None,
    calibration_dataset: Any = None,
    ignored_scope: Sequence[str] = (),
    plan: Plan | str | Path | None = None,
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
        scheme: one scheme text for all sites, `auto` (8-bit codes wherever they are smaller), or
            rules `[{"match": pattern, "scheme": text}]` of which the first match wins.
        budget: not there yet; plans are made by naming schemes.
        calibration_dataset: an iterable of dicts, tuples, arrays or tensors, or an `.npz` path.
            Without it fits are data-free, and the report says so.
        ignored_scope: names of sites that stay dense: globs, or `re:` and a regular expression.
        plan: a plan, or the path of a `plan.json`, to carry out exactly.
        seed: of every fit.
        lossless: exact rewrites before sites are found. True merges linears with nothing between
            and absorbs scales of their outputs; False leaves the model as it is; names choose
            among those of `passes.lossless.LOSSLESS`. The report has a sentence for each, and why
            one that was named left what it nearly fitted.
        portable: write `model.onnx` with standard operators only.
        kernels: `tvm` has TVM compile the structured layers for ONNX Runtime on this CPU, instead
            of running them by its own operators; for target `ort-cpu`.
        with_onnx: for a TVM target, put `model.onnx` beside the compiled module.
        tuned: give kernels the tilings that `undense tune` has measured for this processor, or
            that are shipped for its kind. The report has those used.
        use_cuda_graph: for target `cuda`: names the dynamic dimensions whose lengths come again and
            again (for decoding the batch and the tokens, not the cache, which grows). What depends
            on no others is launched as CUDA graphs, its memory planned once for their upper
            bounds, which may be given ("batch=8"). True is all dimensions with an upper bound.
        cache: statistics and fits that were computed before are looked up, and new ones kept: in
            the folder `undense` of the user's cache, in the folder that is named, or not (False).
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
    from .backend.package import check_toolchain
    from .backend.stored import weight_bytes
    from .backend.target import Target
    from .frontend.load import check_path
    from .frontend.load import load as capture
    from .frontend.samples import check_archive
    from .passes.duplicates import MergeDuplicateWeights
    from .passes.lossless import apply_lossless, chosen
    from .passes.precision import parse_dtype
    from .passes.request import check_request
    from .runtime.artifact import check_destination, write_artifact
    from .runtime.unloaded import load_if_possible

    if budget is not None:
        raise SchemeError(
            "budget: plans made by measurement are not there yet; name the schemes by a scheme, "
            "rules or a plan"
        )
    parsed = Target.parse(target).with_kernels(kernels).with_graphs(use_cuda_graph)
    form = parsed.form(portable=portable)
    parsed.check_onnx(wanted=with_onnx)
    replayed = check_request(scheme, ignored_scope, plan, seed)
    wanted = None if dtype is None else parse_dtype(dtype)
    if wanted is not None:
        parsed.check_dtype(wanted)
    rewrites = chosen(lossless)
    # Before the toolchain, which takes seconds to look at.
    check_path(model)
    check_archive(calibration_dataset)
    if output is not None:
        check_destination(output)
    check_toolchain(parsed)
    stored = _cache(cache)
    job = _Job(parsed, wanted, form, with_onnx, tuned, seed, progress, stored, scheduler)

    def fill(folder: Path) -> Manifest:
        progress(0, 1, "capture")
        captured = capture(model, args, dynamic_shapes)
        MergeDuplicateWeights()(captured)  # a weight that is tied is not to be edited
        before = weight_bytes(captured)
        rewritten = apply_lossless(captured, rewrites)
        prepared = job.prepare(captured)
        progress(1, 1, "capture")
        decided = job.decide(captured, args, calibration_dataset, scheme, ignored_scope, replayed)
        decided.notes.extend(rewritten.sentences(refusals=not isinstance(lossless, bool)))
        return job.build(captured, prepared, decided, folder, before)

    with _destination(output) as folder:
        write_artifact(folder, fill)
        gc.collect()  # graphs are cyclic: the dense weights would stay beside the new ones
        return load_if_possible(folder)


def _cache(named: Cache | str | Path | bool) -> Cache | None:
    from .passes.cache import Cache

    if isinstance(named, bool):
        return Cache() if named else None
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


@dataclass(frozen=True)
class _Decided:
    """What a compile carries out: choices by site, and the samples behind them."""

    sites: list[Site]
    refusals: list[Refusal]
    plan: Plan
    samples: Samples | None
    held_out: list[Sample]
    notes: list[str]

    @property
    def schemes(self) -> dict[str, str]:
        """The scheme of each site."""
        return {choice.name: choice.scheme for choice in self.plan.sites}


@dataclass(frozen=True)
class _Job:
    """The stages of one compile, which share these options."""

    target: Target
    dtype: ir.DataType | None
    form: Form
    with_onnx: bool
    tuned: bool
    seed: int
    progress: Progress
    cache: Cache | None = None
    scheduler: str | None = None

    def prepare(self, captured: ir.Model) -> ir.Model:
        """What will be rewritten: the captured model, or a copy of it in the wanted type.

        Both have the same sites: calibration and fits take the captured one, which ONNX Runtime
        can run on any CPU, and whose weights are not rounded yet.
        """
        from .backend.package import prepare
        from .passes.precision import ConvertFloats

        model = captured
        if self.dtype is not None:
            model = captured.clone()
            ConvertFloats(self.dtype)(model)
        prepare(model, self.target, self.form, with_onnx=self.with_onnx)
        return model

    def decide(
        self,
        model: ir.Model,
        args: tuple[Any, ...] | Mapping[str, Any] | None,
        dataset: Any,
        scheme: str | Sequence[Mapping[str, str]],
        ignored_scope: Sequence[str],
        plan: Plan | None,
    ) -> _Decided:
        """Finds the sites and says what becomes of each."""
        from .frontend.samples import read_samples, shortened, synthetic_sample
        from .passes.decide import (
            decide,
            refuse_exact_activations,
            refuse_rounded_activations,
            settled,
        )
        from .passes.plan import Plan, versions
        from .passes.rules import choose_schemes
        from .passes.sites import find_sites

        sites, refusals = find_sites(model)
        notes = []
        samples: Samples | None = None
        held_out: Iterable[Sample] = ()
        if dataset is not None:
            samples, held_out = read_samples(dataset, model).held_out(_VERIFY_SAMPLES)
        else:
            notes.append("data-free fit: no calibration data was given")
            if args is not None:
                held_out = read_samples([args], model)
        checked = list(held_out) or [synthetic_sample(model, seed=self.seed)]
        checked = [shortened(sample, model, _VERIFY_LENGTH) for sample in checked]
        calibration = None if samples is None else samples.sha256
        activations = self.target.activations
        if plan is not None:
            plan.check_replay(sites, calibration, self.seed)
            choices = tuple(settled(choice, activations) for choice in plan.sites)
            made = replace(plan, sites=choices)
        else:
            schemes = choose_schemes(sites, scheme, ignored_scope)
            choices = tuple(decide(site, schemes[site.name], activations) for site in sites)
            made = Plan(choices, calibration, self.seed, versions())
        if self.form == "portable":
            refuse_exact_activations(choices)
        if self.target.device == "cuda":
            refuse_rounded_activations(choices)
        if self.form == "cuda":
            notes.append(
                "ONNX Runtime's CPU provider stood in for its CUDA provider in the checks of layers"
            )
        return _Decided(sites, refusals, made, samples, checked, notes)

    def fit(self, model: ir.Model, decided: _Decided) -> dict[str, FitResult]:
        """Fits every site that does not stay dense, and that no earlier compile fitted alike."""
        from .frontend.calibrate import calibrate
        from .passes.fit_sites import fit_sites
        from .passes.scheme import parse_scheme
        from .passes.structures.base import Structure

        chosen = {choice.name: parse_scheme(choice.scheme) for choice in decided.plan.sites}
        structures = {name: found for name, found in chosen.items() if isinstance(found, Structure)}
        sites = [site for site in decided.sites if site.name in structures]
        groups: Iterable[tuple[list[Site], dict[str, Stats]]] = [(sites, {})]
        if decided.samples is not None:
            groups = calibrate(
                model, sites, decided.samples, cache=self.cache, progress=self.progress
            )
        return fit_sites(
            sites,
            structures,
            groups,
            calibrated=decided.samples is not None,
            seed=self.seed,
            form=self.form,
            cache=self.cache,
            scheduler=self.scheduler,
            progress=self.progress,
        )

    def build(
        self, captured: ir.Model, model: ir.Model, decided: _Decided, folder: Path, before: int
    ) -> Manifest:
        """Fits, rewrites `model` in place, and writes everything but the manifest to `folder`.

        `before` is the bytes of the weights that the model came with.
        """
        from .backend.expected import expected_outputs
        from .backend.layer_check import check_layers
        from .backend.onnx_runtime import slow_forms
        from .backend.package import lower
        from .backend.stored import bytes_by_name, larger_than_dense
        from .frontend.bounds import index_bounds
        from .frontend.dense import run_dense
        from .frontend.samples import typed
        from .passes.replace import ReplaceDense
        from .runtime.artifact import PLAN
        from .runtime.report import write_report
        from .runtime.verify import write_expectations

        bounds, unreplaced = index_bounds(captured), bytes_by_name(model)
        samples = [typed(sample, model) for sample in decided.held_out]
        dense = run_dense(captured, decided.held_out)
        results = self.fit(captured, decided)
        fitted = {name: found.fitted for name, found in results.items()}
        corrected = sum(found.bias_correction is not None for found in fitted.values())
        if corrected:
            decided.notes.append(f"biases of {corrected} sites take up the mean error of the fits")
        ReplaceDense(decided.plan, fitted, self.form)(model)
        self.progress(0, 1, "lower")
        lowered = lower(model, self.target, folder, with_onnx=self.with_onnx, tuned=self.tuned)
        self.progress(1, 1, "lower")
        self.progress(0, 2, "check")
        expected = expected_outputs(model, samples)
        self.progress(1, 2, "check")
        costs = {
            "bytes": {"before": before, **lowered.stored.report()},
            "kernels": lowered.kernels,
            **lowered.report(),
            "activation_rounding_effect": expected.rounding_effect,
            "layer_execution_error": check_layers(model, folder, samples)
            if lowered.engine == "ort"
            else None,
            "warnings": [
                *(
                    slow_forms(model, self.form, own_kernels=lowered.kernels is not None)
                    if lowered.engine == "ort"
                    else ()
                ),
                *larger_than_dense(decided.sites, decided.schemes, unreplaced, lowered.stored),
                *expected.warnings(),
            ],
        }
        self.progress(2, 2, "check")
        (folder / PLAN).write_text(decided.plan.to_json(), encoding="utf-8")
        write_expectations(folder, samples, dense, expected.outputs)
        write_report(folder, {**self.report(decided, results, lowered.stored), **costs})
        return self.manifest(model, lowered, expected, bounds)

    def report(
        self, decided: _Decided, results: Mapping[str, FitResult], stored: Stored
    ) -> dict[str, Any]:
        """What was replaced by what, and why."""
        from .backend.stored import site_bytes
        from .passes.report import refusal_rows, site_rows

        choices = {choice.name: choice for choice in decided.plan.sites}
        samples = decided.samples
        calibration = samples and {
            "samples": len(samples),
            "tokens": samples.tokens,
            "sha256": samples.sha256,
        }
        return {
            "target": str(self.target),
            "cuda_graphs": self.target.graphs is not None,
            "dtype": None if self.dtype is None else self.dtype.numpy().name,
            "sites": site_rows(
                decided.sites,
                choices,
                results,
                {site.name: site_bytes(site, stored.by_name) for site in decided.sites},
            ),
            "refusals": refusal_rows(decided.refusals),
            "calibration": calibration,
            "error_measure": "weights" if samples is None else "outputs on the calibration data",
            "notes": decided.notes,
        }

    def manifest(
        self,
        model: ir.Model,
        lowered: Lowered,
        expected: Expected,
        bounds: Mapping[str, tuple[int, int]],
    ) -> Manifest:
        """What a session has to know; the hashes are added when the folder is complete."""
        from .backend.package import tensor_infos
        from .frontend.bounds import dimension_bounds
        from .runtime.artifact import Manifest, Tolerance, package_versions

        return Manifest(
            engine=lowered.engine,
            target=str(self.target),
            device=self.target.device,
            architectures=self.target.architectures,
            inputs=tensor_infos(model.graph.inputs, bounds),
            outputs=tensor_infos(model.graph.outputs, {}),
            dimension_bounds={**dimension_bounds(model), **lowered.dimension_bounds},
            parameters=lowered.parameters,
            cpu_features=lowered.cpu_features,
            kernels=lowered.kernels,
            execution_tolerance={
                name: Tolerance(bound, expected.derivation)
                for name, bound in expected.tolerance.items()
            },
            versions={**package_versions(), **lowered.versions},
        )
