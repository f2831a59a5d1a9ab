"""Sites × options → fits of those that are worth one: screened, fitted side by side, kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from typing import Any

import onnx_ir as ir

from .bias_correction import has_bias
from .cache import Cache
from .fit import FitResult
from .fit_jobs import FitJob, fit_all, fit_cost, naming_site
from .progress import Progress, silent
from .screen import KIND, ScreenJob, screened
from .sites import Site
from .stats import Stats
from .structures.base import Form, Structure
from .workers import cluster_workers, local_workers

Options = Mapping[str, Sequence[Structure]]
"""Of each site, by its name."""

_KEPT = 8
"""Options that screening leaves of a site, more or less: for progress alone."""


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
        progress: told of the work done.

    Raises:
        FitError: a fit fails; it names the site. Those that are done are in the cache.
        SchedulerError: the scheduler cannot be used.
        MissingDependencyError: there is no dask to reach the scheduler with.
    """
    expected = {site.name: min(len(options[site.name]), _KEPT) for site in sites}
    cost = sum(
        expected[site.name] * fit_cost(site.out_features, site.in_features, calibrated=calibrated)
        for site in sites
    )
    count = sum(expected.values())
    chosen = cluster_workers(scheduler) if scheduler else local_workers(cost, count)
    found: dict[str, dict[str, FitResult]] = {site.name: {} for site in sites}
    with chosen as workers:
        results = fit_all(
            _jobs(groups, options, floating, seed, form, dtype, workers.executor, cache),
            cost=cost,
            executor=workers.executor,
            in_flight=workers.in_flight,
            cache=cache,
            progress=progress,
        )
        with closing(results):
            for name, result in results:
                found[name][str(result.fitted.structure)] = result
    return {
        name: {str(option): fits[str(option)] for option in options[name] if str(option) in fits}
        for name, fits in found.items()
    }


def _jobs(
    groups: Iterable[tuple[list[Site], dict[str, Stats]]],
    options: Options,
    floating: bool,
    seed: int,
    form: Form,
    dtype: ir.DataType | None,
    executor: Executor | None,
    cache: Cache | None,
) -> Iterator[FitJob]:
    for group, stats in groups:
        kept = _screened(group, options, stats, floating, seed, executor, cache)
        for site in group:
            for option in kept[site.name]:
                known = stats.get(site.name)
                yield FitJob.of_site(site, option, known, seed=seed, form=form, dtype=dtype)
        stats.clear()  # before the next group is measured


def _screened(
    sites: Iterable[Site],
    options: Options,
    stats: Mapping[str, Stats],
    floating: bool,
    seed: int,
    executor: Executor | None,
    cache: Cache | None,
) -> dict[str, list[Structure]]:
    """The options of each site that are worth a fit."""
    found = {site.name: list(options[site.name]) for site in sites}
    waiting: list[tuple[str, dict[str, Any], list[int] | Future[list[int]]]] = []
    for site in sites:
        if len(options[site.name]) < 2:
            continue
        known = stats.get(site.name)
        moments = known.centred() if known is not None and has_bias(site) else known
        job = ScreenJob(
            site.name, site.weight(), moments, tuple(options[site.name]), floating, seed
        )
        key = {} if cache is None else job.key()
        stored = None if cache is None else cache.get(KIND, key)
        if stored is not None:
            numbers = stored.values["kept"]
            found[site.name] = [found[site.name][number] for number in numbers]
        elif executor is None:
            with naming_site(site.name):
                waiting.append((site.name, key, screened(job)))
        else:
            waiting.append((site.name, key, executor.submit(screened, job)))
    for name, key, result in waiting:
        with naming_site(name):
            kept = result if isinstance(result, list) else result.result()
        found[name] = [found[name][number] for number in kept]
        if cache is not None:
            cache.put(KIND, key, {"kept": kept})
    return found
