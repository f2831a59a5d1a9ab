"""Which options are worth a real fit: their errors under C without compensation, and the hull.

Compensation divides the error of codes by about two whatever their levels, so codes are compared
with codes, by their bytes, and floating forms with each other, by their operations: only corners of
a hull are the best at some price. Codes and planes without a residual are quick to fit, and are
kept where none of their kind has fewer bytes and less error in groups as large: kernels of both
kinds differ, larger groups are less work, and kernels are timed afterwards, for what is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .allocate import lower_hull
from .cache import Cache
from .fingerprint import array_sha256, code_fingerprint
from .fit_jobs import Work, fit_cost, naming_site
from .linalg import damped, relative_error
from .stats import Stats
from .structures.base import Structure
from .structures.int_codes import IntCodes
from .structures.low_rank import LowRank
from .structures.monarch import Monarch
from .structures.residual import Residual
from .structures.trit_planes import TritPlanes
from .threads import single_threaded
from .workers import check_code

KIND = "screen"
"""Of the entries of the cache."""


_EXACT = 1e-4
"""Of the squared error, here without compensation: what has less is as good as dense, and what
takes more bytes for still less is not fitted."""


@dataclass(frozen=True, eq=False)
class ScreenJob:
    """What the choice follows from; it can be sent to another process or machine.

    Attributes:
        site: what errors name.
        weight: W, `[out_features, in_features]`.
        stats: that fits are made under; None for data-free ones.
        options: resolved.
        floating: whether low rank and Monarch, which can only be faster than codes, are wanted.
        seed: of what is drawn at random.
        code: `code_fingerprint()` of who made the job, which that of the worker has to equal.
    """

    site: str
    weight: NDArray[np.float32]
    stats: Stats | None
    options: tuple[Structure, ...]
    floating: bool
    seed: int
    code: Mapping[str, str] = field(default_factory=code_fingerprint)

    @property
    def cost(self) -> float:
        """See `screen_cost`."""
        rows, columns = self.weight.shape
        calibrated = self.stats is not None
        return screen_cost(rows, columns, len(self.options), calibrated=calibrated)

    def key(self) -> dict[str, Any]:
        """What the cache knows the result by."""
        stats = self.stats
        return {
            "weight": array_sha256(self.weight),
            "stats": stats and array_sha256(stats.second_moment),
            "options": [repr(option) for option in self.options],
            "floating": self.floating,
            "seed": self.seed,
            "code": dict(self.code),
        }


def screen_cost(out_features: int, in_features: int, options: int, *, calibrated: bool) -> float:
    """An estimate of the work, for progress, in the unit of `fit_cost`; a single one takes none."""
    return options * fit_cost(out_features, in_features, calibrated=calibrated) * (options > 1)


def screen_all(
    jobs: Iterable[ScreenJob],
    *,
    work: Work,
    executor: Executor | None = None,
    in_flight: int = 1,
    cache: Cache | None = None,
) -> Generator[tuple[str, list[int]]]:
    """Yields what `screened` finds by the name of the site, as it is found.

    Args:
        jobs: asked for one after the other.
        work: told of what is done and what the cache saved.
        executor: where they run: any that can import undense; here and now if None.
        in_flight: jobs that are handed to the executor at a time.
        cache: of results.

    Raises:
        FitError: of the first job that fails; it names the site.
    """
    waiting: dict[Future[list[int]], tuple[str, float, dict[str, Any]]] = {}

    def done(site: str, cost: float, key: dict[str, Any], kept: list[int]) -> tuple[str, list[int]]:
        if cache is not None:
            cache.put(KIND, key, {"kept": kept})
        work.done(cost)
        return site, kept

    def completed() -> Iterator[tuple[str, list[int]]]:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            about = waiting.pop(future)
            with naming_site(about[0]):
                kept = future.result()
            yield done(*about, kept)

    try:
        for job in jobs:
            work.tell()
            key = {} if cache is None else job.key()
            stored = None if cache is None else cache.get(KIND, key)
            if stored is not None:
                work.saved(job.cost)
                yield job.site, stored.values["kept"]
            elif executor is None:
                with naming_site(job.site):
                    kept = screened(job)
                yield done(job.site, job.cost, key, kept)
            else:
                while len(waiting) >= in_flight:
                    yield from completed()
                waiting[executor.submit(screened, job)] = job.site, job.cost, key
        while waiting:
            yield from completed()
    finally:
        for future in waiting:
            future.cancel()


def screened(job: ScreenJob) -> list[int]:
    """The numbers of the options on their family's hull.

    Raises:
        FitError: undense, numpy or torch are others here than where the job was made.
    """
    check_code(job.site, job.code)
    shape = job.weight.shape
    floating = [option for option in job.options if _is_floating(option)] if job.floating else []
    codes = [option for option in job.options if not _is_floating(option)]
    plain = [[o for o in codes if isinstance(o, kind)] for kind in (IntCodes, TritPlanes)]
    with single_threaded(with_torch=False):
        errors = _Errors(job.weight, job.stats, job.seed, job.site)
        losses = {option: errors.of(option) for option in [*codes, *floating]}
    bits = {option: float(option.bits(*shape)) for option in codes}
    operations = {option: float(option.macs(*shape)) for option in floating}
    # ONNX Runtime holds 3 bits in 4, TVM does not: by containers 3 bits would never be tried.
    own = bits | {option: float(option.bits_) for option in codes if isinstance(option, IntCodes)}
    fronts = [option for options in plain for option in _front(options, own, losses)]
    kept = {*fronts, *_hull(bits, losses), *_hull(operations, losses)}
    return [number for number, option in enumerate(job.options) if option in kept]


_Codes = IntCodes | TritPlanes
_Of = Mapping[Structure, float]


def _is_floating(option: Structure) -> bool:
    return isinstance(option, Monarch) or (isinstance(option, LowRank) and option.coded is None)


def _front(options: Sequence[_Codes], costs: _Of, losses: _Of) -> list[_Codes]:
    """Those of which no other has at most the cost, less loss, and groups that are no smaller."""
    return [
        option
        for option in options
        if not any(
            costs[o] <= costs[option] and losses[o] < losses[option] and o.group >= option.group
            for o in options
        )
    ]


def _hull(costs: _Of, losses: _Of) -> list[Structure]:
    options = list(costs)
    hull = [options[n] for n in lower_hull(list(costs.values()), [losses[o] for o in options])]
    exact = next((place for place, o in enumerate(hull) if losses[o] < _EXACT), len(hull))
    return hull[: exact + 1]


class _Errors:
    """Squared relative errors under C of quick fits, sharing what options have in common."""

    def __init__(
        self, weight: NDArray[np.float32], stats: Stats | None, seed: int, site: str
    ) -> None:
        self._weight = weight.astype(np.float64)
        self._moment = None if stats is None else damped(stats.second_moment)
        self._root = None if self._moment is None else np.linalg.cholesky(self._moment)
        self._seed, self._site = seed, site
        self._whole = self._energies(self._weight).sum()
        self._weight_energies: NDArray[np.float64] | None = None
        self._of_codes: dict[Structure, NDArray[np.float64]] = {}

    def of(self, option: Structure) -> float:
        """`tr(E C Eᵀ) / tr(W C Wᵀ)`, exact for low rank with floating factors."""
        if isinstance(option, LowRank) and option.rank is not None:
            if self._weight_energies is None:
                self._weight_energies = self._energies(self._weight)
            return self._tail(self._weight_energies, option.rank)
        if isinstance(option, Residual):
            if option.codes not in self._of_codes:
                error = self._weight - self._dense(option.codes)
                self._of_codes[option.codes] = self._energies(error)
            return self._tail(self._of_codes[option.codes], option.rank)
        return relative_error(self._weight, self._dense(option), self._moment) ** 2

    def _dense(self, option: Structure) -> NDArray[np.float64]:
        weight = self._weight.astype(np.float32)
        return option.dense(option.fit(weight, None, seed=self._seed, site=self._site))

    def _energies(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest eigenvalues of `M C Mᵀ`, falling, from the smaller side of M."""
        rows, columns = matrix.shape
        if rows <= columns:
            weighted = matrix if self._moment is None else matrix @ self._moment
            gram = weighted @ matrix.T
        else:
            weighted = matrix if self._root is None else matrix @ self._root
            gram = weighted.T @ weighted
        return np.asarray(np.linalg.eigvalsh(gram)[::-1], np.float64)

    def _tail(self, energies: NDArray[np.float64], rank: int) -> float:
        """The share that is left when the `rank` strongest directions are kept."""
        if self._whole <= 0:
            return 0.0
        return float(np.maximum(energies[rank:], 0).sum() / self._whole)
