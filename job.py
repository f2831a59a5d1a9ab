"""The stages of a compile: capture → rewrite → decide → fit → lower → package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .passes.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from .accuracy_control import AccuracyControl
    from .backend.expected import Expected
    from .backend.kernel_times import WholeRun
    from .backend.package import Lowered
    from .backend.stored import Stored
    from .backend.target import Target
    from .frontend.sample_check import Sample
    from .frontend.samples import Samples
    from .passes.cache import Cache
    from .passes.fit import FitResult
    from .passes.plan import Plan
    from .passes.request import Request
    from .passes.sites import Refusal, Site
    from .passes.structures.base import Form
    from .planning import Planned
    from .runtime.artifact import Manifest

_VERIFY_SAMPLES = 2
_VERIFY_LENGTH = 64
"""Verification samples are cut to this length along each dynamic dimension."""


@dataclass(frozen=True)
class Rewrites:
    """Exact rewrites to make; `named` ones say why where they do not apply."""

    chosen: Sequence[str]
    named: bool


@dataclass(frozen=True)
class Captured:
    """A model on its way.

    Attributes:
        dense: as it came, but for exact rewrites.
        prepared: what the plan will be carried out on.
        bytes: of the weights that the model came with.
        notes: for the report.
    """

    dense: ir.Model
    prepared: ir.Model
    bytes: int
    notes: Sequence[str]


@dataclass(frozen=True)
class Decided:
    """What a compile carries out: choices by site, and the samples behind them.

    `fits` are those that were made on the way, or None if they are to be made. `whole` is the dense
    model to time the artifact of a plan beside, None where no plan was made by measurement.
    """

    sites: list[Site]
    refusals: list[Refusal]
    plan: Plan
    samples: Samples | None
    held_out: list[Sample]
    notes: list[str]
    planned: Planned | None = None
    fits: Mapping[str, FitResult] | None = None
    whole: WholeRun | None = None

    @property
    def schemes(self) -> dict[str, str]:
        """The scheme of each site."""
        return {choice.name: choice.scheme for choice in self.plan.sites}


@dataclass(frozen=True)
class Job:
    """The stages of one compile, which share these options.

    Attributes:
        target, form: where the module will run, and how structured layers are stored there.
        dtype: to convert the model to; None leaves it as it is.
        with_onnx: for a TVM target, write `model.onnx` too.
        seed: of every fit.
        rewrites: the exact ones to make, and whether they were named.
        cache: of statistics, fits and times.
        scheduler: address of a dask scheduler that fits.
        progress: is told what is done.
    """

    target: Target
    form: Form
    dtype: ir.DataType | None
    with_onnx: bool
    seed: int
    rewrites: Rewrites
    cache: Cache | None
    scheduler: str | None
    progress: Progress

    @property
    def options(self) -> dict[str, str]:
        """What a plan keeps of these, as text: all but the seed that decides the bytes."""
        kernels = f" kernels={self.target.kernels}" if self.target.kernels else ""
        portable = " portable" if self.form == "portable" else ""
        return {
            "target": f"{self.target}{kernels}{portable}",
            "dtype": "none" if self.dtype is None else self.dtype.numpy().name,
            "lossless": ", ".join(self.rewrites.chosen) or "none",
        }

    def capture(
        self, model: Any, args: tuple[Any, ...] | Mapping[str, Any] | None, dynamic_shapes: Any
    ) -> Captured:
        """Loads the model, makes exact rewrites, and readies what will be rewritten for the target.

        That has the same sites as the captured one, which calibration and fits take: ONNX Runtime
        can run it on any CPU, and its weights are not rounded yet.
        """
        from .backend.package import prepare
        from .backend.stored import weight_bytes
        from .frontend.load import load
        from .passes.duplicates import MergeDuplicateWeights
        from .passes.lossless import apply_lossless
        from .passes.precision import ConvertFloats

        self.progress(0, 1, "capture")
        captured = load(model, args, dynamic_shapes)
        MergeDuplicateWeights()(captured)  # a weight that is tied is not to be edited
        before = weight_bytes(captured)
        rewritten = apply_lossless(captured, self.rewrites.chosen)
        prepared = captured
        if self.dtype is not None:
            prepared = captured.clone()
            ConvertFloats(self.dtype)(prepared)
        prepare(prepared, self.target, self.form, with_onnx=self.with_onnx)
        self.progress(1, 1, "capture")
        notes = rewritten.sentences(refusals=self.rewrites.named)
        return Captured(captured, prepared, before, notes)

    def decide(
        self,
        captured: Captured,
        args: tuple[Any, ...] | Mapping[str, Any] | None,
        dataset: Any,
        request: Request,
        control: AccuracyControl | None = None,
    ) -> Decided:
        """Finds the sites and says what becomes of each.

        With `control` the metric of a plan made by measurement bounds its distortion.
        """
        from .frontend.distortion import COMPARED_TOKENS
        from .frontend.resize import is_fixed
        from .frontend.samples import read_samples, shortened, synthetic_sample, typed
        from .passes.budget import Budget
        from .passes.decide import (
            decide,
            refuse_exact_activations,
            refuse_rounded_activations,
            settled,
        )
        from .passes.plan import Plan, versions
        from .passes.rules import choose_schemes
        from .passes.sites import find_sites
        from .planning import Planner

        model = captured.dense
        sites, refusals = find_sites(model)
        notes = list(captured.notes)
        samples: Samples | None = None
        held_out: Iterable[Sample] = ()
        if dataset is not None:
            samples, held_out = read_samples(dataset, model).held_out(
                _VERIFY_SAMPLES, COMPARED_TOKENS
            )
        else:
            notes.append("data-free fit: no calibration data was given")
            if args is not None:
                held_out = read_samples([args], model)
        checked = list(held_out)[-_VERIFY_SAMPLES:] or [synthetic_sample(model, seed=self.seed)]
        checked = [shortened(sample, model, _VERIFY_LENGTH) for sample in checked]
        for sample in checked:
            typed(sample, captured.prepared)  # refused now, and not when all is fitted
        calibration = None if samples is None else samples.sha256
        activations = self.target.activations
        planned: Planned | None = None
        whole: WholeRun | None = None
        if request.plan is not None:
            request.plan.check_replay(sites, calibration, self.seed, self.options)
            choices = tuple(settled(choice, activations) for choice in request.plan.sites)
            made = replace(request.plan, sites=choices)
        else:
            schemes = choose_schemes(sites, request.scheme, request.ignored_scope)
            automatic = any(scheme == "auto" for scheme in schemes.values())
            request.check_budget(
                automatic=automatic, calibrated=samples is not None, sites=bool(sites)
            )
            if control is not None:
                control.measure_dense()
            if (automatic or request.predicts) and samples is not None:
                free = Budget.parse(None) if automatic else Budget()
                budget = request.budget or free
                batches = (1,) if is_fixed(model) else request.batch
                whole = self.whole_run(captured, next(iter(held_out)), batches)
                planner = Planner(
                    self,
                    captured,
                    sites,
                    budget,
                    request.budget is None,
                    batches,
                    request.plan_time,
                    samples,
                    list(held_out),
                    whole,
                )
                holds = None if control is None else control.holds
                planned = planner.plan(schemes, request.point, holds)
                made, choices = planned.plan, planned.plan.sites
            else:
                choices = tuple(decide(site, schemes[site.name], activations) for site in sites)
                made = Plan(choices, calibration, self.seed, self.options, versions())
        if self.form == "portable":
            refuse_exact_activations(choices)
        if self.target.device == "cuda":
            refuse_rounded_activations(choices)
        if self.form == "cuda":
            notes.append(
                "ONNX Runtime's CPU provider stood in for its CUDA provider in the checks of layers"
            )
        fits = None if planned is None else planned.results
        beside = whole if planned is not None and planned.timed else None
        return Decided(sites, refusals, made, samples, checked, notes, planned, fits, beside)

    def whole_run(self, captured: Captured, sample: Sample, batches: Sequence[int]) -> WholeRun:
        """The dense model on the target, to be timed at these batches."""
        from .backend.kernel_times import WholeRun
        from .frontend.resize import FIXED_SHAPES, is_fixed, resized, sizes
        from .frontend.samples import typed

        prepared = captured.prepared.clone()
        feeds = resized(typed(sample, prepared), prepared, batches)
        lengths = {rows: sizes(feed, prepared) for rows, feed in feeds.items()}
        notes = [FIXED_SHAPES] if is_fixed(prepared) else []
        return WholeRun(prepared, self.target, feeds, lengths, notes)

    def fit(self, model: ir.Model, decided: Decided) -> Mapping[str, FitResult]:
        """Fits every site that does not stay dense, unless that was done on the way."""
        if decided.fits is not None:
            return decided.fits
        from .fitting import fit_sites
        from .passes.scheme import parse_scheme
        from .passes.structures.base import Structure

        schemes = {name: parse_scheme(text) for name, text in decided.schemes.items()}
        options = {
            name: [scheme] if isinstance(scheme, Structure) else []
            for name, scheme in schemes.items()
        }
        fits = fit_sites(self, model, decided.sites, options, decided.samples)
        return {site: found for site, by_scheme in fits.items() for found in by_scheme.values()}

    def build(self, captured: Captured, decided: Decided, folder: Path) -> Manifest:
        """Fits, rewrites the model, and writes everything but the manifest to `folder`."""
        from .backend.expected import expected_outputs
        from .backend.layer_check import check_layers
        from .backend.onnx_runtime import slow_forms
        from .backend.package import lower
        from .backend.stored import bytes_by_name, larger_than_dense
        from .frontend.bounds import index_bounds
        from .frontend.dense import run_dense
        from .frontend.samples import typed
        from .passes.operators import operator_counts
        from .passes.replace import ReplaceDense
        from .runtime.artifact import PLAN
        from .runtime.report import write_report
        from .runtime.verify import write_expectations

        model = captured.prepared
        bounds, unreplaced = index_bounds(captured.dense), bytes_by_name(model)
        samples = [typed(sample, model) for sample in decided.held_out]
        dense = run_dense(captured.dense, decided.held_out)
        results = self.fit(captured.dense, decided)
        fitted = {name: found.fitted for name, found in results.items()}
        corrected = sum(found.bias_correction is not None for found in fitted.values())
        if corrected:
            decided.notes.append(f"biases of {corrected} sites take up the mean error of the fits")
        unreplaced_operators = operator_counts(model)
        ReplaceDense(decided.plan, fitted, self.form)(model)
        operators = {"before": unreplaced_operators, "after": operator_counts(model)}
        self.progress(0, 1, "lower")
        lowered = lower(model, self.target, folder, with_onnx=self.with_onnx)
        self.progress(1, 1, "lower")
        self.progress(0, 2, "check")
        expected = expected_outputs(model, samples)
        self.progress(1, 2, "check")
        costs = {
            "bytes": {"before": captured.bytes, **lowered.stored.report()},
            "operators": operators,
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
        self, decided: Decided, results: Mapping[str, FitResult], stored: Stored
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
            "cuda_graphs": self.target.graphs is not None and self.target.graphs.wanted,
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
            "planning": None if decided.planned is None else decided.planned.report,
            "validation": None,
            "latency": None,
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
