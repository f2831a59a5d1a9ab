"""Compiles many variants of one model: one capture, one calibration, one fit for both engines.

`undense.compile` does the same work for one variant; here its stages share what they can.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from undense.backend.package import prepare
from undense.backend.stored import weight_bytes
from undense.backend.target import Target
from undense.frontend.calibrate import calibrate
from undense.job import Captured, Decided, Job, Rewrites
from undense.passes.fit import FitResult, fit_site
from undense.passes.progress import Progress, silent
from undense.passes.request import Request
from undense.passes.scheme import parse_scheme
from undense.passes.stats import Stats
from undense.passes.structures.base import Structure
from undense.runtime.artifact import write_artifact
from undense.runtime.session import Session, load

TARGETS = {"ort": "ort-cpu", "tvm": "llvm"}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        scheme: of all sites that are not ignored, or of those that no rule matches.
        calibrated: whether fits see the statistics of the calibration text.
        rules: schemes of certain sites, before `scheme`.
        ignored: sites that stay dense.
    """

    scheme: str
    calibrated: bool = False
    rules: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique among the rows of a model."""
        rules = "".join(f", {match} {scheme}" for match, scheme in self.rules)
        return f"{self.scheme}{rules}, {'calibrated' if self.calibrated else 'data-free'}"


@dataclass
class _Shared:
    """What variants share: the statistics of every site, and the fits of the last variant."""

    stats: dict[str, Stats] = field(default_factory=dict)
    variant: Variant | None = None
    fits: dict[str, FitResult] = field(default_factory=dict)


@dataclass(frozen=True)
class _SharingJob(Job):
    """A compile that reuses statistics and fits."""

    shared: _Shared = field(default_factory=_Shared)

    def fit(self, model: ir.Model, decided: Decided) -> dict[str, FitResult]:
        """Fits what the last compile of the same variant did not; a plan has its own."""
        if decided.fits is not None:
            return dict(decided.fits)
        shared = self.shared
        if decided.samples is not None and not shared.stats:
            for _, found in calibrate(
                model, decided.sites, decided.samples, progress=self.progress
            ):
                shared.stats |= found
        stats = {} if decided.samples is None else shared.stats
        structures = {choice.name: parse_scheme(choice.scheme) for choice in decided.plan.sites}
        chosen = [site for site in decided.sites if isinstance(structures[site.name], Structure)]
        for done, site in enumerate(chosen):
            structure = structures[site.name]
            assert isinstance(structure, Structure)
            known = shared.fits.get(site.name)
            if known is None:
                known = fit_site(
                    site, structure, stats.get(site.name), seed=self.seed, form=self.form
                )
            # How activations are rounded differs between the engines, and no fit depends on it.
            fitted = dataclasses.replace(known.fitted, structure=structure)
            shared.fits[site.name] = dataclasses.replace(known, fitted=fitted)
            self.progress(done + 1, len(chosen), "fit")
        return {site.name: shared.fits[site.name] for site in chosen}


class Workbench:
    """Builds variants of a captured model in a folder of its own."""

    def __init__(
        self,
        model: ir.Model,
        example: Mapping[str, Any],
        calibration: Sequence[Mapping[str, Any]],
        folder: Path,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._example = example
        self._calibration = calibration
        self._folder = folder
        self._progress = progress
        self._shared = _Shared()

    def build(self, variant: Variant, engine: str, num_threads: int | None = None) -> Session:
        """Compiles a variant for `ort` or `tvm` and loads it; an older one in its place goes."""
        if variant != self._shared.variant:
            self._shared.variant, self._shared.fits = variant, {}
        path = self._folder / engine / variant.name.replace("/", "-")
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        job = _SharingJob(
            target=dataclasses.replace(Target.parse(TARGETS[engine]), tuned=False),
            dtype=None,
            form="fast",
            with_onnx=False,
            seed=0,
            rewrites=Rewrites((), named=False),
            cache=None,
            scheduler=None,
            progress=self._progress,
            shared=self._shared,
        )
        rules = [{"match": match, "scheme": scheme} for match, scheme in variant.rules]
        scheme = [*rules, {"match": "*", "scheme": variant.scheme}] if rules else variant.scheme
        dataset = self._calibration if variant.calibrated else None

        def fill(folder: Path) -> Any:
            model = self._model.clone()
            before = weight_bytes(model)
            prepare(model, job.target, job.form, with_onnx=False)
            captured = Captured(model, model, before, ())
            request = Request.checked(scheme, variant.ignored)
            decided = job.decide(captured, self._example, dataset, request)
            return job.build(captured, decided, folder)

        write_artifact(path, fill)
        return load(path, num_threads=num_threads)
