"""Sites × options → fits of those that are worth one: screened, fitted side by side, kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import onnx_ir as ir

from .bias_correction import has_bias
from .cache import Cache
from .fit import FitResult
from .fit_jobs import FitJob, Work, fit_all, fit_cost
from .progress import Progress, silent
from .screen import KIND as SCREEN
from .screen import ScreenJob, screen_all, screen_cost
from .sites import Site
from .stats import Stats
from .structures.base import Form, Structure
from .workers import Workers, cluster_workers, local_workers

Options = Mapping[str, Sequence[Structure]]
"""Of each site, by its name."""

_KEPT = 8
"""Options that screening leaves of a site, more or less: what is told until it was screened."""


def fit_options(
    sites: Sequence[Site],
    options: Options,
    groups: Iterable[tuple[list[Site], dict[str, Stats]]],
    *,
    calibrated: bool = True,
    floating: bool = True,
    seed: int,
    form: Form,
    dtype: ir.DataType | None = None,
    cache: Cache | None = None,
    scheduler: str | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, FitResult]]:
    """The fits of each site by scheme text, in the order of its options.

    Args:
        sites: all that are in `groups`.
        options: resolved; a single one is not screened.
        groups: sites with their statistics, as `calibrate` yields them.
        calibrated: whether there are statistics.
        floating: whether low rank and Monarch are wanted, which take more bytes than codes.
        seed: of every fit.
        form: what tensors are packed for.
        dtype: that the model will be converted to.
        cache: where results are looked up and kept.
        scheduler: address of a dask scheduler; the processors of this machine if None.
        progress: told of the work done, in the stages `screen` and `fit`.

    Raises:
        FitError: a fit fails; it names the site. Those that are done are in the cache.
        SchedulerError: the scheduler cannot be used.
        MissingDependencyError: there is no dask to reach the scheduler with.
    """
    guessed = {site.name: min(len(options[site.name]), _KEPT) for site in sites}
    costs = {
        site.name: fit_cost(site.out_features, site.in_features, calibrated=calibrated)
        for site in sites
    }
    cost = sum(guessed[name] * costs[name] for name in costs)
    screening = sum(
        screen_cost(
            site.out_features, site.in_features, len(options[site.name]), calibrated=calibrated
        )
        for site in sites
    )
    chosen = cluster_workers(scheduler) if scheduler else local_workers(cost, sum(guessed.values()))
    found: dict[str, dict[str, FitResult]] = {site.name: {} for site in sites}
    fitting = Work(cost, progress)
    with chosen as workers:
        screen = _Screen(options, floating, seed, workers, cache, Work(screening, progress, SCREEN))

        def jobs() -> Iterator[FitJob]:
            for group, stats in groups:
                kept = screen.kept(group, stats)
                for name, left in kept.items():
                    fitting.expect((len(left) - guessed[name]) * costs[name])
                for site in group:
                    known = stats.get(site.name)
                    for option in kept[site.name]:
                        yield FitJob.of_site(site, option, known, seed=seed, form=form, dtype=dtype)
                stats.clear()  # before the next group is measured

        results = fit_all(
            jobs(),
            work=fitting,
            executor=workers.executor,
            in_flight=workers.in_flight,
            cache=cache,
        )
        with closing(results):
            for name, result in results:
                found[name][str(result.fitted.structure)] = result
    return {
        name: {str(option): fits[str(option)] for option in options[name] if str(option) in fits}
        for name, fits in found.items()
    }


@dataclass(frozen=True)
class _Screen:
    """How options are screened; see `fit_options`."""

    options: Options
    floating: bool
    seed: int
    workers: Workers
    cache: Cache | None
    work: Work

    def kept(self, group: Sequence[Site], stats: Mapping[str, Stats]) -> dict[str, list[Structure]]:
        """The options of each site that are worth a fit."""
        found = {site.name: list(self.options[site.name]) for site in group}
        results = screen_all(
            self._jobs(group, stats),
            work=self.work,
            executor=self.workers.executor,
            in_flight=self.workers.in_flight,
            cache=self.cache,
        )
        with closing(results):
            for name, numbers in results:
                found[name] = [found[name][number] for number in numbers]
        if self.work.is_done and any(len(self.options[site.name]) > 1 for site in group):
            self.work.finished()
        return found

    def _jobs(self, group: Sequence[Site], stats: Mapping[str, Stats]) -> Iterator[ScreenJob]:
        for site in group:
            options = tuple(self.options[site.name])
            if len(options) < 2:
                continue
            known = stats.get(site.name)
            moments = known.centred() if known is not None and has_bias(site) else known
            yield ScreenJob(site.name, site.weight(), moments, options, self.floating, self.seed)
