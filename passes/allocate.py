"""Budget → choice: the option of every site that together cost least within all limits, exactly."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = Sequence[Sequence[float]]
"""A number for each option of each site."""

_NODES = 20_000
"""Of the search: a bound on its time that, unlike seconds, gives the same plan everywhere. Models
of 200 sites with 20 options each need a few hundred at most."""

_GAP = 1e-6

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
    """
    kept = [_undominated(site, aim, limits) for site in range(len(aim))]
    found = _solve(aim, limits, kept)
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
        found = _solve(aim, limits, kept) or found


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


def _solve(aim: Table, limits: Sequence[Limit], kept: Sequence[Sequence[int]]) -> list[int] | None:
    """The best choice among the options that are kept; None if no choice is within the limits."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    if not aim:
        return [] if all(limit.most >= 0 for limit in limits) else None
    sites = np.repeat(np.arange(len(kept)), [len(options) for options in kept])
    columns = np.arange(len(sites))
    one_each = csr_matrix((np.ones(len(sites)), (sites, columns)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        costs = _flat(limit.costs, kept)
        # Scaled, so that the solver's tolerances mean the same for bytes and milliseconds.
        scale = max(float(costs.max(initial=0.0)), 1e-300)
        most = limit.most + 1e-9 * abs(limit.most)
        constraints.append(LinearConstraint(costs[None] / scale, -np.inf, most / scale))
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
        return None
    taken = np.asarray(found.x) > 0.5
    options = np.concatenate([np.asarray(some) for some in kept])
    return [int(option) for option in options[taken]]


@contextmanager
def _without_output() -> Iterator[None]:
    """Keeps what HiGHS writes to the process's output, whatever it is told, from standing there.

    One at a time: two threads in turns would leave the process without its output.
    """
    with _OUTPUT:
        if sys.stdout is not None:
            sys.stdout.flush()
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)


def _flat(table: Table, kept: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    return np.array([table[site][option] for site, some in enumerate(kept) for option in some])


def _explanation(limits: Sequence[Limit]) -> Impossible:
    """The first limit that is too strict alone, or else beside those before it."""
    for limit in limits:
        least = sum(min(row) for row in limit.costs)
        if least > limit.most:
            return Impossible(limit.name, float(least))
    for number, limit in enumerate(limits):
        before = limits[:number]
        cheapest = _solve(limit.costs, before, [range(len(row)) for row in limit.costs])
        if cheapest is not None and total(limit.costs, cheapest) > limit.most:
            others = tuple(other.name for other in before)
            return Impossible(limit.name, total(limit.costs, cheapest), others)
    raise AssertionError("every limit can be kept")  # pragma: no cover
