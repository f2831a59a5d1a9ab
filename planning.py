"""`scheme="auto"`: fits, times and measures the options of every site, and plans from that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .passes.auto import pareto, reason
from .passes.budget import Budget
from .passes.decide import decide
from .passes.errors import MissingDependencyError, PlanError, TargetError
from .passes.plan import Choice, Plan, versions
from .passes.planning_report import costs, planning_report
from .passes.pricing import Option, PricedModel, PricedSite
from .passes.scheme import Scheme, parse_scheme
from .passes.sensitivity import Change, Sensitivities
from .passes.settle import Settled, settle, settle_by_metric
from .passes.structures.base import Structure

if TYPE_CHECKING:
    import onnx_ir as ir

    from .backend.kernel_times import WholeRun
    from .frontend.distortion import Distortion
    from .frontend.sample_check import Sample
    from .frontend.samples import Samples
    from .job import Captured, Job
    from .passes.cache import JSON
    from .passes.fit import FitResult
    from .passes.sites import Site

DENSE = "dense"

_Times = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Milliseconds by site, scheme and batch."""

_POINTS = 5


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from.

    Attributes:
        plan: the choice of every site.
        results: the fits of those that are not dense.
        report: the part `planning` of the report.
        settled: the choice with its prices.
    """

    plan: Plan
    results: dict[str, FitResult]
    report: dict[str, Any]
    settled: Settled

    @property
    def timed(self) -> bool:
        """Whether anything could be timed on this machine."""
        return bool(self.settled.model.batches)


@dataclass(frozen=True)
class Planner:
    """Plans one model for one target.

    Attributes:
        job: the target, and how fits are made there.
        captured: the model.
        sites: of it.
        budget: what is allowed.
        unlimited: whether nobody gave it.
        batches: at which kernels are timed; products of the lengths of dynamic dimensions.
        seconds: for measurements of distortion.
        samples: to calibrate on.
        held_out: to measure distortion on, if they are enough without those to calibrate on.
        whole: the dense model on the target.
    """

    job: Job
    captured: Captured
    sites: Sequence[Site]
    budget: Budget
    unlimited: bool
    batches: Sequence[int]
    seconds: float
    samples: Samples
    held_out: Sequence[Sample]
    whole: WholeRun

    def plan(
        self,
        schemes: Mapping[str, Scheme],
        point: int | None = None,
        holds: Callable[[Mapping[str, FitResult]], bool] | None = None,
    ) -> Planned:
        """The plan for sites whose scheme is `auto`; others get what was asked for.

        Args:
            schemes: of every site by name.
            point: a point of the Pareto table, from 1, instead of the budget's choice.
            holds: whether the metric of the dense model with these fits keeps `max_drop`, which
                bounds the distortion without it.

        Raises:
            PlanError: the budget cannot be kept; says which limit, and how near one can come.
        """
        self._check_latency()
        named = {
            site.name: decide(site, schemes[site.name], self.job.target.activations)
            for site in self.sites
            if schemes[site.name] != "auto"
        }
        options = {site.name: self._options(site, named.get(site.name)) for site in self.sites}
        fitted = self._fits(options, named)
        fits, weights = self._variants(fitted, schemes)
        times, rest, notes = self._times_if_possible(fits)
        model = self._priced(fits, weights, times, rest, schemes)
        with self._sensitivities(fitted, fits) as (sensitivities, measured):
            model = sensitivities.priced(model)
            if holds is not None:
                settled = settle_by_metric(
                    model, self.budget, sensitivities, lambda s: holds(_results(s, fits))
                )
            else:
                lost = self._named_loss(model, sensitivities)
                settled = self._settled(model, sensitivities, lost, needed=point is None)
                notes += self.budget.notes(lost) if point is None else []
            check = sensitivities.check(settled.model)
            points = pareto(settled.model, self.budget, _POINTS)
            if point is not None:
                settled = _at(settled.model, points, point, sensitivities)
            found = settled.model
            table = [
                {**costs(found, chosen), "distortion": sensitivities.joint(found, chosen)}
                for chosen in points
            ]
        return self._planned(settled, named, fits, measured, check, table, notes)

    def _check_latency(self) -> None:
        """Refuses a limit on what cannot be measured here, before anything is fitted."""
        from .backend.kernel_times import check_measurable

        if self.budget.latency_ratio is not None:
            check_measurable(self.job.target)

    def _named_loss(self, model: PricedModel, sensitivities: Sensitivities) -> float:
        """What sites lose whose schemes were named: without a budget it is allowed beside it."""
        if not self.unlimited or self.budget.max_drop is None:
            return 0.0
        return sensitivities.joint(model, [site.fixed or 0 for site in model.sites])

    def _settled(
        self, model: PricedModel, sensitivities: Sensitivities, lost: float, *, needed: bool
    ) -> Settled:
        """The choice that the budget allows; if it is not needed, as good as none."""
        budget = self.budget
        if budget.max_drop is not None:
            budget = replace(budget, max_drop=budget.max_drop + lost)
        try:
            return settle(model, budget, sensitivities)
        except PlanError:
            if needed:
                raise
            asked = [site.fixed or 0 for site in model.sites]
            return Settled(model, asked, sensitivities.joint(model, asked))

    def _options(self, site: Site, named: Choice | None) -> list[Structure]:
        from .passes.options import site_options

        if named is None:
            return site_options(site, portable=self.job.form == "portable")
        chosen = parse_scheme(named.scheme)
        return [chosen] if isinstance(chosen, Structure) else []

    def _variants(
        self, fits: Mapping[str, Mapping[str, FitResult]], schemes: Mapping[str, Scheme]
    ) -> tuple[dict[str, dict[str, FitResult]], dict[tuple[str, str], str]]:
        """The options by site and scheme, and the scheme that each was fitted as."""
        from .passes.options import variants

        options: dict[str, dict[str, FitResult]] = {}
        weights: dict[tuple[str, str], str] = {}
        for site in self.sites:
            found: dict[str, FitResult] = options.setdefault(site.name, {})
            if schemes[site.name] != "auto":
                found.update(fits[site.name])
                continue
            tried = self.job.target.activation_options
            for fitted_as, result in variants(site, fits[site.name], tried):
                found[str(result.fitted.structure)] = result
                weights[site.name, str(result.fitted.structure)] = fitted_as
        return options, weights

    def _times_if_possible(
        self, fits: Mapping[str, Mapping[str, FitResult]]
    ) -> tuple[_Times, dict[int, float], list[str]]:
        """The times of the sites and of the rest of a run, where the target runs here; notes."""
        from .backend.kernel_times import check_measurable, site_times

        try:
            check_measurable(self.job.target)
        except (MissingDependencyError, TargetError) as error:
            none: dict[int, float] = {}
            untimed = {name: dict.fromkeys((DENSE, *found), none) for name, found in fits.items()}
            return untimed, {}, [f"planned for size alone: {error}"]
        found = site_times(
            self.sites,
            fits,
            self.job.target,
            self.job.form,
            self.batches,
            dtype=self.job.dtype,
            lengths=self.whole.lengths,
            table=self.job.cache,
            progress=self.job.progress,
        )
        rest, notes = self.whole.beyond(found, self.batches, self.job.cache, self.job.progress)
        return found.milliseconds, rest, notes

    def _fits(
        self, options: Mapping[str, Sequence[Structure]], named: dict[str, Choice]
    ) -> dict[str, dict[str, FitResult]]:
        """The fits of all options; sites that cannot be calibrated are named as dense."""
        from .fitting import fit_sites

        dense, floating = self.captured.dense, self.budget.wants_latency
        return fit_sites(
            self.job, dense, self.sites, options, self.samples, floating=floating, named=named
        )

    def _priced(
        self,
        fits: Mapping[str, Mapping[str, FitResult]],
        weights: Mapping[tuple[str, str], str],
        times: _Times,
        rest: Mapping[int, float],
        schemes: Mapping[str, Scheme],
    ) -> PricedModel:
        from .backend.option_bytes import OptionBytes
        from .backend.stored import bytes_by_name, site_bytes, weight_bytes
        from .passes.options import rounded_block

        sites, by_name = [], bytes_by_name(self.captured.prepared)
        others = weight_bytes(self.captured.prepared)
        rounding, stored = self._rounding(fits), OptionBytes(self.job.target)
        for site in self.sites:
            plain = site_bytes(site, by_name)
            others -= plain
            size = stored.of_dense(site, plain)
            options = [Option(DENSE, size, times[site.name][DENSE], 0.0, 0.0, True)]
            shape, dtype = (site.out_features, site.in_features), _dtype(site, self.job.dtype)
            for scheme, found in fits[site.name].items():
                options.append(
                    Option(
                        scheme,
                        stored.of(found.fitted, shape, dtype),
                        times[site.name][scheme],
                        found.relative_error,
                        0.0,
                        measured=False,
                        rounding=rounding.get((site.name, scheme), 0.0),
                        block=rounded_block(found.fitted.structure),
                        weights=weights.get((site.name, scheme), ""),
                    )
                )
            fixed = None if schemes[site.name] == "auto" else len(options) - 1
            sites.append(
                PricedSite(site.name, site.in_features, site.out_features, tuple(options), fixed)
            )
        return PricedModel.of(sites, self.captured.bytes, rest, max(others, 0))

    def _rounding(
        self, fits: Mapping[str, Mapping[str, FitResult]]
    ) -> dict[tuple[str, str], float]:
        """The relative error of a site's outputs by rounded activations, by site and scheme."""
        from .frontend.rounding import rounding_errors
        from .passes.options import rounded_block

        blocks = {
            (name, scheme): block
            for name, found in fits.items()
            for scheme, result in found.items()
            if (block := rounded_block(result.fitted.structure)) is not None
        }
        by_site: dict[str, set[int]] = {}
        for (name, _), block in blocks.items():
            by_site.setdefault(name, set()).add(block)
        sample = [*self.held_out, *self.samples][0]
        errors = rounding_errors(self.captured.dense, self.sites, sample, by_site)
        return {key: errors.get((key[0], block), 0.0) for key, block in blocks.items()}

    @contextmanager
    def _sensitivities(
        self,
        fitted: Mapping[str, Mapping[str, FitResult]],
        variants: Mapping[str, Mapping[str, FitResult]],
    ) -> Iterator[tuple[Sensitivities, Distortion]]:
        """What measures distortions while it is open, by these fits and their variants."""
        from .frontend.distortion import compared_on, distortion
        from .frontend.distortion_cache import DistortionCache
        from .frontend.exchange import Exchange

        made_from: dict[str, JSON] = {
            "calibration": self.samples.sha256,
            "seed": self.job.seed,
            "form": self.job.form,
            "dtype": None if self.job.dtype is None else self.job.dtype.name,
        }
        shapes = {site.name: (site.out_features, site.in_features) for site in self.sites}
        samples = compared_on(self.held_out, self.samples)
        known = DistortionCache(self.job.cache, self.captured.dense, samples.all, made_from)

        def exchange(name: str, change: Change) -> Exchange:
            if isinstance(change, int):
                return Exchange(block=change)
            found = variants[name].get(change) or fitted[name][change]
            return Exchange.of(found.fitted, shapes[name])

        with distortion(self.captured.dense, shapes, samples) as measured:

            def measure(changes: Mapping[str, Change]) -> float:
                return known.of(
                    changes,
                    lambda: measured.of((n, exchange(n, change)) for n, change in changes.items()),
                )

            found = Sensitivities(measure, self.seconds, self.job.seed, self.job.progress)
            yield found, measured
            found.finish()

    def _planned(
        self,
        settled: Settled,
        named: Mapping[str, Choice],
        fits: Mapping[str, Mapping[str, FitResult]],
        measured: Distortion,
        check: dict[str, Any],
        table: Sequence[Mapping[str, Any]],
        notes: Sequence[str],
    ) -> Planned:
        model = settled.model
        pairs = list(zip(model.sites, settled.chosen, strict=True))
        choices = tuple(
            Choice(
                site.name,
                site.in_features,
                site.out_features,
                site.options[number].scheme,
                named[site.name].reason
                if site.name in named
                else reason(site, number, self.budget),
            )
            for site, number in pairs
        )
        report = planning_report(
            settled,
            self.budget,
            choices,
            notes=[*notes, *measured.samples.notes()],
            measure=measured.measure,
            samples=measured.samples.counts(),
            prediction=check,
            pareto=table,
        )
        plan = Plan(choices, self.samples.sha256, self.job.seed, self.job.options, versions())
        return Planned(plan, _results(settled, fits), report, settled)


def _results(settled: Settled, fits: Mapping[str, Mapping[str, FitResult]]) -> dict[str, FitResult]:
    """The fits of the options that were chosen."""
    pairs = zip(settled.model.sites, settled.model.taken(settled.chosen), strict=True)
    return {
        site.name: fits[site.name][option.scheme]
        for site, option in pairs
        if option is not site.dense
    }


def _at(
    model: PricedModel, points: Sequence[list[int]], point: int, sensitivities: Sensitivities
) -> Settled:
    if not 1 <= point <= len(points):
        raise PlanError(f"point {point}: this model has points 1 to {len(points)}")
    chosen = points[point - 1]
    return Settled(model, chosen, sensitivities.joint(model, chosen))


def _dtype(site: Site, converted: ir.DataType | None) -> ir.DataType:
    """Of the activations, once the model is converted if it is to be."""
    return converted or site.uses[0].dtype
