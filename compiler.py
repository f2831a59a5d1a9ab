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
    from .backend.onnx_runtime import prepare
    from .backend.target import Target
    from .frontend.load import load as capture
    from .runtime.artifact import write_artifact
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
    form: Form = "portable" if portable else "fast"
    job = _Job(parsed, form, with_onnx, seed, progress)

    def fill(folder: Path) -> Manifest:
        progress(0, 1, "capture")
        captured = capture(model, args, dynamic_shapes)
        prepare(captured, form)
        progress(1, 1, "capture")
        decided = job.decide(captured, args, calibration_dataset, scheme, ignored_scope, plan)
        return job.build(captured, decided, folder)

    with _destination(output) as folder:
        write_artifact(folder, fill)
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


@dataclass(frozen=True)
class _Decided:
    """What a compile carries out: choices by site, and the samples behind them."""

    sites: list[Site]
    refusals: list[Refusal]
    plan: Plan
    samples: Samples | None
    held_out: list[dict[str, np.ndarray[Any, Any]]]
    notes: list[str]


@dataclass(frozen=True)
class _Job:
    """The stages of one compile, which share these options."""

    target: Target
    form: Form
    with_onnx: bool
    seed: int
    progress: Progress

    def decide(
        self,
        model: ir.Model,
        args: tuple[Any, ...] | Mapping[str, Any] | None,
        dataset: Any,
        scheme: str | Sequence[Mapping[str, str]],
        ignored_scope: Sequence[str],
        plan: Plan | str | Path | None,
    ) -> _Decided:
        """Finds the sites and says what becomes of each."""
        from .frontend.samples import read_samples, synthetic_sample
        from .passes.decide import decide
        from .passes.plan import Plan, read_plan, versions
        from .passes.rules import choose_schemes
        from .passes.sites import find_sites

        sites, refusals = find_sites(model)
        notes = []
        samples = None if dataset is None else read_samples(dataset, model)
        if samples is None:
            notes.append("data-free: no calibration data was given, and compensation needs it")
            example = read_samples([args], model) if args is not None else None
            held_out = list(example) if example else [synthetic_sample(model, seed=self.seed)]
        else:
            samples, kept = samples.held_out(_VERIFY_SAMPLES)
            held_out = list(kept)
        calibration = None if samples is None else samples.sha256
        if plan is not None:
            replayed = plan if isinstance(plan, Plan) else read_plan(Path(plan))
            replayed.check_replay(sites, calibration, self.seed)
            return _Decided(sites, refusals, replayed, samples, held_out, notes)
        schemes = choose_schemes(sites, scheme, ignored_scope)
        choices = tuple(decide(site, schemes[site.name], self.target.activations) for site in sites)
        made = Plan(choices, calibration, self.seed, versions())
        return _Decided(sites, refusals, made, samples, held_out, notes)

    def fit(self, model: ir.Model, decided: _Decided) -> dict[str, FitResult]:
        """Fits every site that does not stay dense, a group at a time."""
        from .frontend.calibrate import calibrate
        from .passes.fit import fit_site
        from .passes.scheme import parse_scheme
        from .passes.structures.base import Structure

        structures = {choice.name: parse_scheme(choice.scheme) for choice in decided.plan.sites}
        sites = [site for site in decided.sites if isinstance(structures[site.name], Structure)]
        groups = (
            [(sites, {})]
            if decided.samples is None
            else calibrate(model, sites, decided.samples, progress=self.progress)
        )
        results: dict[str, FitResult] = {}
        for group, stats in groups:
            for site in group:
                structure = structures[site.name]
                found = stats.get(site.name)
                results[site.name] = fit_site(
                    site, structure, found, seed=self.seed, form=self.form
                )
                self.progress(len(results), len(sites), "fit")
        return results

    def build(self, model: ir.Model, decided: _Decided, folder: Path) -> Manifest:
        """Fits, rewrites `model` in place, and writes everything but the manifest to `folder`."""
        from .backend.expected import expected_outputs
        from .backend.onnx_runtime import slow_forms
        from .backend.package import lower, weight_bytes
        from .frontend.dense import run_dense
        from .passes.replace import ReplaceDense
        from .runtime.artifact import PLAN, write_expectations
        from .runtime.report import write_report

        before = weight_bytes(model)
        dense = run_dense(model, decided.held_out)
        results = self.fit(model, decided)
        ReplaceDense(decided.plan, {name: found.fitted for name, found in results.items()})(model)
        warnings = slow_forms(model, self.form) if self.target.engine == "ort" else []
        self.progress(0, 2, "lower")
        lowered = lower(model, self.target, folder, with_onnx=self.with_onnx)
        self.progress(1, 2, "reference")
        expected = expected_outputs(model, decided.held_out)
        self.progress(2, 2, "reference")
        (folder / PLAN).write_text(decided.plan.to_json(), encoding="utf-8")
        write_expectations(folder, decided.held_out, dense, expected.outputs)
        report = self.report(decided, results, lowered, expected, before, warnings)
        write_report(folder, report)
        return self.manifest(model, lowered, expected)

    def report(
        self,
        decided: _Decided,
        results: Mapping[str, FitResult],
        lowered: Lowered,
        expected: Expected,
        before: int,
        warnings: list[str],
    ) -> dict[str, Any]:
        """What was replaced by what, why, and at what cost."""
        from .passes.report import refusal_rows, site_rows

        choices = {choice.name: choice for choice in decided.plan.sites}
        samples = decided.samples
        return {
            "target": str(self.target),
            "sites": site_rows(decided.sites, choices, results),
            "refusals": refusal_rows(decided.refusals),
            "bytes": {"before": before, "after": lowered.engine_bytes},
            "calibration": None
            if samples is None
            else {"samples": len(samples), "tokens": samples.tokens, "sha256": samples.sha256},
            "error_measure": "weights" if samples is None else "outputs under the second moment",
            "activation_rounding_effect": expected.rounding_effect,
            "notes": decided.notes,
            "warnings": warnings,
        }

    def manifest(self, model: ir.Model, lowered: Lowered, expected: Expected) -> Manifest:
        """What a session has to know; the hashes are added when the folder is complete."""
        from .backend.package import tensor_infos
        from .frontend.bounds import dimension_bounds, index_bounds
        from .runtime.artifact import Manifest, Tolerance, package_versions

        return Manifest(
            engine=lowered.engine,
            target=str(self.target),
            inputs=tensor_infos(model.graph.inputs, index_bounds(model)),
            outputs=tensor_infos(model.graph.outputs, {}),
            dimension_bounds={**dimension_bounds(model), **lowered.dimension_bounds},
            parameters=lowered.parameters,
            cpu_features=lowered.cpu_features,
            execution_tolerance={
                name: Tolerance(bound, expected.derivation)
                for name, bound in expected.tolerance.items()
            },
            versions=package_versions(),
        )
