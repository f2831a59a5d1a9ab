"""Budget → choice: the option of every site that together cost least within all limits, exactly."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .budget import TOLERANCE, up_to
from .errors import PlanError

Table = Sequence[Sequence[float]]
"""A number for each option of each site."""

_NODES = 20_000
"""Of the search: a bound on its time that, unlike seconds, gives the same plan everywhere. Models
of 200 sites with 20 options each need a few hundred at most."""

_GAP = 1e-6

_SCALE = 1e4
"""What a limit has left beyond the cheapest options is so much in the solver's unit, of which it
passes limits by a millionth: less than `TOLERANCE`."""

_OPTIMAL, _INFEASIBLE = 0, 2
"""What SciPy says of a search that came to its end."""

_TRIES = 5
"""Of solving again, each time with tighter limits, where the solver passed them by more."""

_OUTPUT = threading.Lock()


@dataclass(frozen=True)
class Limit:
    """`Σ cost[site][chosen] ≤ most`.

    Attributes:
        name: for messages: `size_ratio`.
        costs: of each option of each site.
        most: the greatest sum that is allowed; below zero what is fixed costs too much already.
    """

    name: str
    costs: Table
    most: float

    def keeps(self, spent: float) -> bool:
        """Whether a sum is within it, but for rounding."""
        return spent <= up_to(self.most)


class Impossible(Exception):
    """No choice keeps all limits.

    Attributes:
        name: the limit that cannot be kept.
        least: the least sum of its costs that the other limits allow.
        others: names of limits without which it could be kept; empty if it is too strict alone.
    """

    def __init__(self, name: str, least: float, others: tuple[str, ...] = ()) -> None:
        super().__init__(name, least, others)
        self.name, self.least, self.others = name, least, others


def allocate(aim: Table, limits: Sequence[Limit] = ()) -> list[int]:
    """The option of each site with the least `Σ aim[site][chosen]` within the limits.

    A multiple-choice knapsack with several limits, solved to optimality as an integer program by
    HiGHS. Its linear relaxation is the Lagrangian bound, which leaves at most as many sites
    undecided as there are limits, so that the search ends at once on models' sizes; options that
    another is no worse than in everything are left out beforehand.

    Args:
        aim: what is to be least: the distortion, or a cost.
        limits: on other sums.

    Returns:
        The number of an option for each site; the first of equals.

    Raises:
        Impossible: names the limit that cannot be kept, and how near one can come.
        PlanError: the search ends before it has found a choice, or that there is none.
    """
    kept = [_undominated(site, aim, limits) for site in range(len(aim))]
    found = _solve(aim, limits, kept).choice
    if found is None:
        raise _explanation(limits)
    # The solver's tolerance is absolute, and some options are worse than the best sum by orders
    # of magnitude: without those that cannot be part of it, it means the same for all.
    while True:
        spare = total(aim, found) * (1 + _GAP) - sum(map(min, aim))
        near = [
            [option for option in some if row[option] - min(row) <= spare]
            for row, some in zip(aim, kept, strict=True)
        ]
        if near == kept:
            return found
        kept = near
        found = _solve(aim, limits, kept).choice or found


def total(table: Table, chosen: Sequence[int]) -> float:
    """`Σ table[site][chosen]`."""
    return float(sum(row[option] for row, option in zip(table, chosen, strict=True)))


def lower_hull(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The options that some price of a unit of cost makes the best, from cheap to dear.

    Those are the corners of the lower convex hull of the points (cost, loss), as far as more cost
    brings less loss; of equal points the first.
    """
    order = sorted(range(len(costs)), key=lambda option: (costs[option], losses[option], option))
    hull: list[int] = []
    for option in order:
        if hull and losses[option] >= losses[hull[-1]]:
            continue
        while len(hull) > 1 and not _turns(costs, losses, hull[-2], hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _turns(
    costs: Sequence[float], losses: Sequence[float], first: int, middle: int, last: int
) -> bool:
    """Whether the loss falls faster from first to middle than from there to last."""
    before = (losses[first] - losses[middle]) * (costs[last] - costs[middle])
    after = (losses[middle] - losses[last]) * (costs[middle] - costs[first])
    return before > after


def _undominated(site: int, aim: Table, limits: Sequence[Limit]) -> list[int]:
    """The options that no other is as good as in everything; of equals the first."""
    prices = np.array([aim[site], *(limit.costs[site] for limit in limits)], np.float64)
    no_worse = (prices[:, :, None] <= prices[:, None, :]).all(axis=0)  # [one, other]
    earlier = np.triu(np.ones_like(no_worse), 1)
    beaten = (no_worse & (earlier | ~no_worse.T)).any(axis=0)
    return [int(option) for option in np.flatnonzero(~beaten)]


@dataclass(frozen=True)
class _Answer:
    """Of the solver.

    Attributes:
        choice: within the limits; None if none was found.
        proven: whether there is no better one, or none at all.
    """

    choice: list[int] | None
    proven: bool


def _solve(aim: Table, limits: Sequence[Limit], kept: Sequence[Sequence[int]]) -> _Answer:
    """The best choice among the options that are kept."""
    possible = _possible(limits, kept)
    if possible is None or not aim:
        return _Answer(None if possible is None else [], proven=True)
    most = [limit.most + TOLERANCE / 2 * abs(limit.most) for limit in limits]
    for number in range(_TRIES):
        answer = _optimum(aim, limits, most, possible)
        if answer.choice is None:
            return _Answer(None, answer.proven and number == 0)
        spent = [total(limit.costs, answer.choice) for limit in limits]
        if all(limit.keeps(sum_) for limit, sum_ in zip(limits, spent, strict=True)):
            return _Answer(answer.choice, answer.proven and number == 0)
        most = [
            tight if limit.keeps(sum_) else tight - 2 * (sum_ - limit.most)
            for limit, sum_, tight in zip(limits, spent, most, strict=True)
        ]
    return _Answer(None, proven=False)


def _possible(
    limits: Sequence[Limit], kept: Sequence[Sequence[int]]
) -> Sequence[Sequence[int]] | None:
    """Without the options that pass a limit even beside the cheapest of all other sites.

    None if the cheapest pass it.
    """
    while True:
        before = kept
        for limit in limits:
            rows = list(zip(limit.costs, kept, strict=True))
            least = [min(row[option] for option in some) for row, some in rows]
            if not limit.keeps(sum(least)):
                return None
            spare = up_to(limit.most) - sum(least)
            kept = [
                [option for option in some if row[option] - low <= spare]
                for (row, some), low in zip(rows, least, strict=True)
            ]
        if kept == before:
            return kept


def _optimum(
    aim: Table, limits: Sequence[Limit], most: Sequence[float], kept: Sequence[Sequence[int]]
) -> _Answer:
    """What HiGHS finds; it may pass these limits by its tolerance."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    sites = np.repeat(np.arange(len(kept)), [len(options) for options in kept])
    columns = np.arange(len(sites))
    one_each = csr_matrix((np.ones(len(sites)), (sites, columns)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    starts = np.flatnonzero(np.diff(sites, prepend=-1))
    for limit, allowed in zip(limits, most, strict=True):
        costs = _flat(limit.costs, kept)
        least = np.minimum.reduceat(costs, starts)
        if np.maximum.reduceat(costs, starts).sum() <= allowed:
            continue
        # Beyond the cheapest options, and scaled: the tolerances of the solver, which are absolute,
        # mean the same for bytes and milliseconds, and whatever the cheapest take.
        spare = max(allowed - float(least.sum()), 0.0)
        scale = _SCALE / max(spare, TOLERANCE / 2 * abs(limit.most), 1e-300)
        row = (costs - least[sites]) * scale
        constraints.append(LinearConstraint(row[None], -np.inf, spare * scale))
    weights = _flat(aim, kept)
    scale = max(float(np.abs(weights).max()), 1e-300)
    with _without_output():
        found = milp(
            weights / scale,
            constraints=constraints,
            bounds=Bounds(0, 1),
            integrality=np.ones(len(sites)),
            options={"node_limit": _NODES, "mip_rel_gap": _GAP},
        )
    if found.x is None:
        return _Answer(None, proven=found.status == _INFEASIBLE)
    taken = np.asarray(found.x) > 0.5
    options = np.concatenate([np.asarray(some) for some in kept])
    return _Answer([int(option) for option in options[taken]], proven=found.status == _OPTIMAL)


@contextmanager
def _without_output() -> Iterator[None]:
    """Keeps what HiGHS writes to the process's output, whatever it is told, from standing there.

    One at a time: two threads in turns would leave the process without its output. C keeps text
    for a pipe or a file until it is flushed, or the process ends.
    """
    flush = ctypes.CDLL(None).fflush
    with _OUTPUT:
        if sys.stdout is not None:
            sys.stdout.flush()
        flush(None)
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)


def _flat(table: Table, kept: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    return np.array([table[site][option] for site, some in enumerate(kept) for option in some])


def _explanation(limits: Sequence[Limit]) -> Impossible | PlanError:
    """The first limit that is too strict alone, or else beside those before it.

    Where the search ends before it tells, that.
    """
    for limit in limits:
        least = float(sum(min(row) for row in limit.costs))
        if not limit.keeps(least):
            return Impossible(limit.name, least)
    for number, limit in enumerate(limits):
        before = limits[:number]
        cheapest = _solve(limit.costs, before, [range(len(row)) for row in limit.costs])
        if cheapest.choice is None or not cheapest.proven:
            continue
        least = total(limit.costs, cheapest.choice)
        if not limit.keeps(least):
            return Impossible(limit.name, least, tuple(other.name for other in before))
    names = " together with ".join(limit.name for limit in limits) or "it"
    return PlanError(
        f"budget: the search for a choice that keeps {names} ended after {_NODES} steps, with none "
        "found, and without proof that there is none; raise what is limited, or name the schemes "
        "of some layers"
    )
