"""`scheme="auto"`: fits, times and measures the options of every site, and plans from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .passes.auto import pareto, reason, runners_up
from .passes.budget import Budget
from .passes.errors import PlanError
from .passes.plan import Choice, Plan, versions
from .passes.pricing import Option, PricedModel, PricedSite
from .passes.progress import Progress
from .passes.scheme import Scheme
from .passes.sensitivity import Sensitivities
from .passes.settle import Settled, joint_distortion, settle
from .passes.structures.base import Structure

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from .backend.target import Target
    from .frontend.sample_check import Sample
    from .frontend.samples import Samples
    from .passes.fit import FitResult
    from .passes.sites import Site
    from .passes.stats import Stats
    from .passes.structures.base import Form

PLAN_SECONDS = 600.0
"""For measurements of distortion, unless the caller says otherwise."""

BATCHES = (1, 32)

_TOKENS = 512
"""That distortion is measured on, more or less."""

_POINTS = 5


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from.

    Attributes:
        plan: the choice of every site.
        results: the fits of those that are not dense.
        report: the part `planning` of the report.
    """

    plan: Plan
    results: dict[str, FitResult]
    report: dict[str, Any]


@dataclass(frozen=True)
class Planner:
    """Plans one model for one target.

    Attributes:
        model: the captured dense model.
        sites: of it.
        bytes: of all its weights.
        target, form: where the options will run, and how they are stored.
        seed: of every fit.
        budget: what is allowed.
        batches: at which kernels are timed; products of the lengths of dynamic dimensions.
        seconds: for measurements of distortion.
        samples: to calibrate on.
        held_out: to measure distortion on, before samples of the calibration.
        progress: told of every stage.
    """

    model: ir.Model
    sites: Sequence[Site]
    bytes: int
    target: Target
    form: Form
    seed: int
    budget: Budget
    batches: Sequence[int]
    seconds: float
    samples: Samples
    held_out: Sequence[Sample]
    progress: Progress

    def plan(self, schemes: Mapping[str, Scheme], point: int | None = None) -> Planned:
        """The plan for sites whose scheme is `auto`; others get what was asked for.

        Args:
            schemes: of every site by name.
            point: a point of the Pareto table, from 1, instead of the budget's choice.

        Raises:
            PlanError: the budget cannot be kept; says which limit, and how near one can come.
        """
        fits = _Fits(self.sites)
        for site, stats in self._calibrated():
            for structure in self._options(site, schemes[site.name], stats):
                fits.add(site, structure, stats, self.seed, self.form)
            self.progress(len(fits.done), len(self.sites), "fit")
        model = self._priced(fits, schemes)
        with self._distortion(fits) as sensitivities:
            model = sensitivities.priced(model, self.progress)
            points = [] if point is None else pareto(model, _POINTS)
            if point is None:
                settled = settle(model, self.budget, sensitivities)
            else:
                settled = _at(model, points, point, sensitivities)
            check = sensitivities.check(settled.model)
            table = [
                self._row(settled.model, chosen, sensitivities)
                for chosen in points or pareto(settled.model, _POINTS)
            ]
        return self._planned(settled, fits, check, table)

    def _calibrated(self) -> Iterator[tuple[Site, Stats | None]]:
        from .frontend.calibrate import calibrate

        for group, stats in calibrate(self.model, self.sites, self.samples, progress=self.progress):
            for site in group:
                yield site, stats.get(site.name)

    def _options(self, site: Site, scheme: Scheme, stats: Stats | None) -> Sequence[Structure]:
        """What is worth a fit."""
        from .passes.decide import decide
        from .passes.options import site_options
        from .passes.scheme import parse_scheme
        from .passes.screen import screened

        if scheme != "auto":
            chosen = parse_scheme(decide(site, scheme, self.target.activations).scheme)
            return [chosen] if isinstance(chosen, Structure) else []
        options = site_options(site, self.target.activations)
        shape = site.out_features, site.in_features
        costs = {option: (option.bits(*shape) / 8,) for option in options}
        return screened(site.weight(), options, costs, stats, seed=self.seed, site=site.name)

    def _priced(self, fits: _Fits, schemes: Mapping[str, Scheme]) -> PricedModel:
        sites = []
        for site in self.sites:
            weight_bytes = 4 * site.out_features * site.in_features
            options = [Option("dense", weight_bytes, {}, 0.0, 0.0, measured=True)]
            for scheme, found in fits.done[site.name].items():
                stored = sum(tensor.nbytes for tensor in found.fitted.tensors.values())
                options.append(Option(scheme, stored, {}, found.relative_error, 0.0, False))
            fixed = None if schemes[site.name] == "auto" else len(options) - 1
            sites.append(
                PricedSite(site.name, site.in_features, site.out_features, tuple(options), fixed)
            )
        return PricedModel(tuple(sites), self.bytes, {})

    @contextmanager
    def _distortion(self, fits: _Fits) -> Iterator[Sensitivities]:
        from .frontend.distortion import distortion

        names = [site.name for site in self.sites]
        with distortion(self.model, names, self._measured_samples()) as measured:

            def measure(schemes: Mapping[str, str]) -> float:
                return measured.of(
                    {name: fits.weight(name, scheme) for name, scheme in schemes.items()}
                )

            yield Sensitivities(measure, self.seconds, self.seed)

    def _measured_samples(self) -> list[Sample]:
        from .frontend.samples import Samples

        found: list[Sample] = []
        for sample in [*self.held_out, *self.samples]:
            found.append(sample)
            if Samples(tuple(found)).tokens >= _TOKENS:
                break
        return found

    def _row(
        self, model: PricedModel, chosen: Sequence[int], sensitivities: Sensitivities
    ) -> dict[str, Any]:
        """A point of the Pareto table."""
        return {
            "size_ratio": model.size_ratio(chosen),
            "latency_ratio": {b: model.latency_ratio(chosen, b) for b in model.batches},
            "effective_bits": model.effective_bits(chosen),
            "distortion": joint_distortion(model, chosen, sensitivities),
        }

    def _planned(
        self,
        settled: Settled,
        fits: _Fits,
        check: dict[str, Any],
        table: Sequence[Mapping[str, Any]],
    ) -> Planned:
        model = settled.model
        pairs = list(zip(model.sites, settled.chosen, strict=True))
        choices = tuple(
            Choice(
                site.name,
                site.in_features,
                site.out_features,
                site.options[number].scheme,
                reason(site, number, self.budget),
            )
            for site, number in pairs
        )
        results = {
            choice.name: fits.done[choice.name][choice.scheme]
            for choice in choices
            if choice.scheme != "dense"
        }
        report = {
            "budget": str(self.budget),
            "batches": list(model.batches),
            "size_ratio": model.size_ratio(settled.chosen),
            "latency_ratio": {b: model.latency_ratio(settled.chosen, b) for b in model.batches},
            "effective_bits": model.effective_bits(settled.chosen),
            "distortion": settled.joint,
            "additivity": settled.additivity,
            "swaps": settled.swaps,
            "prediction": check,
            "pareto": list(table),
            "runners_up": {
                site.name: runners_up(site, number, self.budget) for site, number in pairs
            },
        }
        plan = Plan(choices, self.samples.sha256, self.seed, versions())
        return Planned(plan, results, report)


def _at(
    model: PricedModel, points: Sequence[list[int]], point: int, sensitivities: Sensitivities
) -> Settled:
    if not 1 <= point <= len(points):
        raise PlanError(f"point {point}: this model has points 1 to {len(points)}")
    chosen = points[point - 1]
    return Settled(model, chosen, joint_distortion(model, chosen, sensitivities))


class _Fits:
    """The fitted options of every site."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.done: dict[str, dict[str, FitResult]] = {}
        self._sites = {site.name: site for site in sites}

    def add(
        self, site: Site, structure: Structure, stats: Stats | None, seed: int, form: Form
    ) -> None:
        """Fits one option."""
        from .passes.fit import fit_site

        found = fit_site(site, structure, stats, seed=seed, form=form)
        self.done.setdefault(site.name, {})[str(structure)] = found

    def weight(self, name: str, scheme: str) -> NDArray[np.float64]:
        """Ŵ of an option."""
        fitted, site = self.done[name][scheme].fitted, self._sites[name]
        factors = fitted.structure.unpack(fitted.tensors, site.out_features, site.in_features)
        return fitted.structure.dense(factors)
