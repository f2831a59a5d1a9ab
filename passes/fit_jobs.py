"""Fits as jobs: one weight each, carried out anywhere, looked up first and stored afterwards."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bias_correction import has_bias
from .cache import Cache, Entry
from .errors import FitError, SchedulerError, UndenseError, cause_of
from .fingerprint import array_sha256, code_fingerprint
from .fit import FitResult, factor_type, fit_weight
from .options import FITTED
from .progress import Progress, silent
from .replace import Fitted
from .sites import Site
from .stats import Stats
from .structures.base import Form, Structure
from .threads import single_threaded
from .workers import check_code

KIND = "fit"
"""Of the entries of the cache."""

_CORRECTION = "bias_correction"
"""Beside the names of tensors, none of which is called so."""

_ELEMENTWISE = 512
"""What searching the levels or factors of one weight costs, in multiply-accumulates."""


@dataclass(frozen=True, eq=False)
class FitJob:
    """All that a fit follows from; it can be sent to another process or machine.

    Attributes:
        site: what errors and results name; it does not change the factors.
        weight: W, `[out_features, in_features]`.
        structure: resolved for that shape. Its weights are those with `activations=float`, as which
            it is fitted and known, so that an option has them whatever x is rounded to.
        stats: of the inputs; None for a data-free fit.
        seed: of what is drawn at random.
        form: what the tensors are packed for.
        dtype: of the floating tensors.
        corrected: whether a bias takes up the mean error.
        code: `code_fingerprint()` of who made the job, which that of the worker has to equal.
    """

    site: str
    weight: NDArray[np.float32]
    structure: Structure
    stats: Stats | None
    seed: int
    form: Form
    dtype: ir.DataType
    corrected: bool = False
    code: Mapping[str, str] = field(default_factory=code_fingerprint)

    @staticmethod
    def of_site(
        site: Site,
        structure: Structure,
        stats: Stats | None,
        *,
        seed: int,
        form: Form,
        dtype: ir.DataType | None = None,
    ) -> FitJob:
        """The job of fitting `structure` to the weight of a site, which is read now.

        `dtype` is what the model will be converted to.
        """
        return FitJob(
            site.name,
            site.weight(),
            structure,
            stats,
            seed,
            form,
            factor_type(site, form, dtype),
            has_bias(site),
        )

    @property
    def cost(self) -> float:
        """See `fit_cost`."""
        return fit_cost(*self.weight.shape, calibrated=self.stats is not None)

    def key(self) -> dict[str, Any]:
        """What the cache knows the result by: everything but the name of the site."""
        return {
            "weight": array_sha256(self.weight),
            "stats": self.stats and _stats_key(self.stats),
            "structure": repr(self.structure.with_activations(FITTED)),
            "seed": self.seed,
            "form": self.form,
            "dtype": self.dtype.name,
            "corrected": self.corrected,
            "code": dict(self.code),
        }


@dataclass(frozen=True, eq=False)
class FitArrays:
    """A `FitResult` as plain arrays, which can be sent and stored.

    Attributes:
        arrays: the tensors by name, and the correction of the bias if there is one.
        relative_error: as of the result.
    """

    arrays: dict[str, NDArray[Any]]
    relative_error: float

    @staticmethod
    def of_result(result: FitResult) -> FitArrays:
        """The arrays of a result."""
        arrays = {name: tensor.numpy() for name, tensor in result.fitted.tensors.items()}
        if result.fitted.bias_correction is not None:
            arrays[_CORRECTION] = result.fitted.bias_correction
        return FitArrays(arrays, result.relative_error)

    def result(self, structure: Structure) -> FitResult:
        """The result again, of the structure that was asked for: with its own activations."""
        tensors = {
            name: ir.tensor(array) for name, array in self.arrays.items() if name != _CORRECTION
        }
        fitted = Fitted(structure, tensors, self.arrays.get(_CORRECTION))
        return FitResult(fitted, self.relative_error)


@functools.lru_cache(maxsize=1)
def _stats_key(stats: Stats) -> list[str | int]:
    """The same for all options of a site, which come one after the other."""
    return [array_sha256(stats.second_moment, stats.mean), stats.tokens]


def fit_cost(out_features: int, in_features: int, *, calibrated: bool) -> float:
    """An estimate of the work of a fit in multiply-accumulates, for sharing out and progress.

    Fits under statistics multiply W by matrices of in_features squared, data-free ones decompose
    the smaller side at most, and both go over all weights some times.
    """
    side = in_features if calibrated else min(out_features, in_features)
    return float(out_features * in_features * (side + _ELEMENTWISE))


def run(job: FitJob) -> FitArrays:
    """Carries out a job, on one thread: the same job gives the same bytes wherever it runs.

    Raises:
        FitError: as `fit_weight`; or undense, numpy or torch are others here than where the job
            was made.
    """
    check_code(job.site, job.code)
    with single_threaded(with_torch=job.stats is not None):
        result = fit_weight(
            job.weight,
            job.structure.with_activations(FITTED),
            job.stats,
            seed=job.seed,
            form=job.form,
            dtype=job.dtype,
            corrected=job.corrected,
            site=job.site,
        )
    return FitArrays.of_result(result)


def fit_all(
    jobs: Iterable[FitJob],
    *,
    work: Work,
    executor: Executor | None = None,
    in_flight: int = 1,
    cache: Cache | None = None,
) -> Generator[tuple[str, FitResult]]:
    """Yields results by the name of their site, as they are done.

    A result that the cache has takes no work. What is done is stored at once, also if this is left
    early, by an error or an interrupt; jobs that have not begun are then cancelled.

    Args:
        jobs: asked for one after the other, so that few weights are held at a time.
        work: told of what is done and what the cache saved; its total is the cost of all jobs.
        executor: where they run: any that can import undense; here and now if None.
        in_flight: jobs that are handed to the executor at a time.
        cache: of results.

    Raises:
        FitError: of the first job that fails; it names the site.
    """
    running = _Running(cache, work)
    try:
        for job in jobs:
            running.work.tell()  # not before: what makes the first job may be calibration
            key = {} if cache is None else job.key()
            known = None if cache is None else cache.get(KIND, key)
            if known is not None:
                running.work.saved(job.cost)
                yield job.site, _read(known).result(job.structure)
                continue
            waiting = _Waiting(job.site, job.structure, job.cost, key)
            if executor is None:
                with naming_site(job.site):
                    found = run(job)
                yield running.done(waiting, found)
                continue
            while len(running.futures) >= in_flight:
                yield from running.completed()
            running.futures[executor.submit(run, job)] = waiting
        while running.futures:
            yield from running.completed()
        running.work.finished()
    finally:
        running.stop()


@dataclass(frozen=True)
class _Waiting:
    """What is kept of a job that was handed over: not its arrays."""

    site: str
    structure: Structure
    cost: float
    key: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Running:
    """The jobs in flight, and what becomes of their results."""

    cache: Cache | None
    work: Work
    futures: dict[Future[FitArrays], _Waiting] = field(default_factory=dict)

    def completed(self) -> Iterator[tuple[str, FitResult]]:
        """Waits for a job at least, and yields the results of those that are done."""
        for future in wait(self.futures, return_when=FIRST_COMPLETED).done:
            with naming_site(self.futures[future].site):
                found = future.result()
            yield self.done(self.futures.pop(future), found)

    def done(self, waiting: _Waiting, found: FitArrays) -> tuple[str, FitResult]:
        """Stores a result and counts it; what the cache has is mapped from there."""
        self._store(waiting, found)
        self.work.done(waiting.cost)
        kept = None if self.cache is None else self.cache.get(KIND, waiting.key)
        found = found if kept is None else _read(kept)
        return waiting.site, found.result(waiting.structure)

    def stop(self) -> None:
        """Stores what is done and was not asked for, and cancels what has not begun."""
        for future, waiting in self.futures.items():
            if future.cancel() or not future.done() or future.cancelled():
                continue
            if future.exception() is None:
                self._store(waiting, future.result())

    def _store(self, waiting: _Waiting, found: FitArrays) -> None:
        if self.cache is not None:
            values = {"relative_error": found.relative_error}
            self.cache.put(KIND, waiting.key, values, found.arrays)


def _read(entry: Entry) -> FitArrays:
    return FitArrays(entry.arrays, **entry.values)


@contextlib.contextmanager
def naming_site(site: str) -> Iterator[None]:
    """Whatever goes wrong within names the site."""
    try:
        yield
    except UndenseError:
        raise
    except BrokenExecutor as error:
        raise FitError(
            site,
            "a process that fits was ended, as systems do when memory runs out",
            "free memory and compile again: fits that were done are not repeated",
        ) from error
    except Exception as error:
        if _is_of_cluster(error):
            raise SchedulerError(
                f"{site}: the cluster did not fit it ({type(error).__name__}: {cause_of(error)}); "
                "have the scheduler and its workers run, with the same versions of undense as "
                "here, and compile again: fits that were done are kept"
            ) from error
        raise FitError(
            site,
            f"its fit failed: {type(error).__name__}: {cause_of(error)}",
            "choose another scheme for it, or keep it dense",
        ) from error


def _is_of_cluster(error: Exception) -> bool:
    """Whether dask failed rather than the fit: jobs are cancelled where the scheduler is lost."""
    of_dask = type(error).__module__.partition(".")[0] == "distributed"
    return of_dask or isinstance(error, CancelledError) or "deserializ" in str(error)


class Work:
    """Tells of the cost of jobs that are done, of those that the cache did not save.

    Attributes:
        total: of all jobs, as far as it is known.
        progress: is told.
        stage: that it is told of.
    """

    def __init__(self, total: float, progress: Progress = silent, stage: str = KIND) -> None:
        self.total, self.progress, self.stage = total, progress, stage
        self._done = 0.0

    def done(self, cost: float) -> None:
        """A job was carried out."""
        self._done += cost
        self.tell()

    def saved(self, cost: float) -> None:
        """A job need not be carried out."""
        self.expect(-cost)
        self.tell()

    def expect(self, more: float) -> None:
        """The total was estimated, and is this much more, or less."""
        self.total += more

    @property
    def is_done(self) -> bool:
        """Whether nothing is left of the total."""
        return self._done >= self.total

    def finished(self) -> None:
        """Nothing is left."""
        self.progress(1, 1, self.stage)

    def tell(self) -> None:
        """Where it is; nothing of the end, which `finished` tells."""
        if not self.is_done:
            self.progress(int(self._done), int(self.total), self.stage)
