"""Sites × structures → factors of the whole model: fits side by side, none of them twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing

from .cache import Cache
from .fit import FitResult
from .fit_jobs import FitJob, fit_all, fit_cost
from .progress import Progress, silent
from .sites import Site
from .stats import Stats
from .structures.base import Form, Structure
from .workers import cluster_workers, local_workers


def fit_sites(
    sites: Sequence[Site],
    structures: Mapping[str, Structure],
    groups: Iterable[tuple[list[Site], dict[str, Stats]]],
    *,
    calibrated: bool,
    seed: int,
    form: Form,
    cache: Cache | None = None,
    scheduler: str | None = None,
    progress: Progress = silent,
) -> dict[str, FitResult]:
    """The fit of each site, by its name.

    Args:
        sites: all that are in `groups`.
        structures: resolved, by the name of the site.
        groups: sites with their statistics, as `calibrate` yields them; the next group is asked
            for while the last jobs of the one before run.
        calibrated: whether there are statistics.
        seed: of every fit.
        form: what tensors are packed for.
        cache: where results are looked up and kept.
        scheduler: address of a dask scheduler; the processors of this machine if None.
        progress: told of the work done.

    Raises:
        FitError: a fit fails; it names the site. Those that are done are in the cache.
        SchedulerError: the scheduler cannot be used.
        MissingDependencyError: there is no dask to reach the scheduler with.
    """
    cost = sum(
        fit_cost(site.out_features, site.in_features, calibrated=calibrated) for site in sites
    )
    chosen = cluster_workers(scheduler) if scheduler else local_workers(cost, len(sites))
    jobs = _jobs(groups, structures, seed, form)
    with chosen as workers:
        results = fit_all(
            jobs,
            cost=cost,
            executor=workers.executor,
            in_flight=workers.in_flight,
            cache=cache,
            progress=progress,
        )
        with closing(results):
            return dict(results)


def _jobs(
    groups: Iterable[tuple[list[Site], dict[str, Stats]]],
    structures: Mapping[str, Structure],
    seed: int,
    form: Form,
) -> Iterator[FitJob]:
    for group, stats in groups:
        for site in group:
            structure, found = structures[site.name], stats.get(site.name)
            yield FitJob.of_site(site, structure, found, seed=seed, form=form)
        stats.clear()  # before the next group is measured
