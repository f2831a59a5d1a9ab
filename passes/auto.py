"""A budget and priced options → the choice of every site, and why: `scheme="auto"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .allocate import Impossible, Limit, Table, allocate, total
from .budget import Budget, rounded_up, up_to
from .errors import PlanError
from .pricing import RESOLUTION_MS, Option, PricedModel, PricedSite

_GROUP = re.compile(r"\{group=\d+\}|(?<=\{)group=\d+,|,group=\d+")

Price = Callable[[PricedSite, Option], float]


def choose(model: PricedModel, budget: Budget, max_distortion: float | None = None) -> list[int]:
    """The number of the option of each site.

    Where size, bits or latency are limited, the distortion is the least within those limits;
    otherwise bytes and time, each relative to dense and in equal parts, are the least for the
    allowed distortion. An option that `PricedSite.gate` refuses is never chosen.

    Args:
        model: the options.
        budget: limits of costs; its `max_drop` is what `max_distortion` is made from.
        max_distortion: on the sum over the sites; None for none.

    Raises:
        PlanError: no choice keeps the limits; names the one that cannot be kept, and the number
            to raise it to.
    """
    free = _Free(model, budget)
    limits = free.limits()
    if max_distortion is not None:
        limits.append(Limit("max_drop", free.table(_distortion), max_distortion))
    aim = free.table(_distortion if budget.limits_cost else free.cost)
    try:
        return free.numbers(allocate(aim, limits))
    except Impossible as error:
        raise PlanError(free.refusal(error)) from None


def least_distortion(model: PricedModel, budget: Budget) -> float:
    """The least sum of distortions that the gate leaves, whatever else is limited."""
    free = _Free(model, budget)
    return sum(map(min, free.table(_distortion)))


def pareto(model: PricedModel, budget: Budget, points: int = 5) -> list[list[int]]:
    """Choices of least distortion, from the smallest model that the gate leaves to one near dense.

    The limits of their bytes are in equal ratios; choices that are the same stand once. What is
    not smaller than dense is never chosen, and what is slower only if the budget is of size alone.
    """
    gate = Budget(size_ratio=1.0, latency_ratio=1.0 if budget.wants_latency else None)
    free = _Free(model, gate)
    sizes = free.table(_bytes)
    least, most = (float(sum(map(pick, sizes))) for pick in (min, max))
    found: list[list[int]] = []
    for limit in np.geomspace(max(least, 1), max(most, 1), points + 1)[:-1]:
        limits = [Limit("size_ratio", sizes, float(limit))]
        chosen = free.numbers(allocate(free.table(_distortion), limits))
        if chosen not in found:
            found.append(chosen)
    return found


def uniform(model: PricedModel, budget: Budget, chosen: Sequence[int]) -> list[list[int]]:
    """A choice with each scheme at all sites that have it and the gate lets have it.

    The others have what was chosen; in another choice those are dense for which the gate is closed.
    Schemes are the same that differ by the group, which follows from a site's shape. A site's first
    option of a scheme is taken, the one with the largest group.
    """
    known = [_by_scheme(site, range(len(site.options))) for site in model.sites]
    numbers = [_by_scheme(site, _open(site, budget)) for site in model.sites]

    def choice(scheme: str, *, dense: bool) -> list[int]:
        found = []
        for site, has, may, number in zip(model.sites, known, numbers, chosen, strict=True):
            other = may.get(site.dense.scheme, number) if dense and scheme in has else number
            found.append(may.get(scheme, other))
        return found

    found: list[list[int]] = []
    for scheme in dict.fromkeys(scheme for may in numbers for scheme in may):
        for dense in (False, True):
            if (candidate := choice(scheme, dense=dense)) not in found:
                found.append(candidate)
    return found


def _by_scheme(site: PricedSite, numbers: Iterable[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number in numbers:
        found.setdefault(_GROUP.sub("", site.options[number].scheme), number)
    return found


def allowed(model: PricedModel, budget: Budget, chosen: Sequence[int]) -> bool:
    """Whether a choice keeps the limits on costs, and the gate lets all of it through."""
    if any(
        number not in _open(site, budget) for site, number in zip(model.sites, chosen, strict=True)
    ):
        return False
    return not exceeded(model, budget, chosen)


def exceeded(model: PricedModel, budget: Budget, chosen: Sequence[int]) -> dict[str, float]:
    """The limits on costs that a choice does not keep, and what it reaches instead."""
    found: dict[str, float] = {}
    for cost in _costs(model, budget):
        prices = [
            [cost.price(site, option)]
            for site, option in zip(model.sites, model.taken(chosen), strict=True)
        ]
        limit = cost.limit(prices)
        spent = total(limit.costs, [0] * len(prices))
        if not limit.keeps(spent):
            found[cost.key] = max(cost.ratio(spent), found.get(cost.key, 0.0))
    return found


def swaps(
    model: PricedModel, budget: Budget, chosen: Sequence[int], best: int
) -> Iterator[list[int]]:
    """Choices that differ at two sites and keep the limits on costs, those of the least sum first.

    One of the two loses less than before, the other not.

    Args:
        model: the options.
        budget: limits of costs.
        chosen: keeps them.
        best: so many of the changes that lose less are tried, those that do most.
    """
    free = _Free(model, budget)
    places = [numbers.index(number) for numbers, number in zip(free.open, chosen, strict=True)]
    changes = [
        (site, place)
        for site, numbers in enumerate(free.open)
        for place in range(len(numbers))
        if place != places[site]
    ]

    def added(table: Table) -> NDArray[np.float64]:
        """By each change."""
        return np.array([table[site][place] - table[site][places[site]] for site, place in changes])

    lost = added(free.table(_distortion))
    order = np.argsort(lost, kind="stable")
    lowered, raised = order[lost[order] < 0][:best], order[lost[order] >= 0]
    sites = np.array([site for site, _ in changes], int)
    kept = sites[lowered][:, None] != sites[raised]
    for limit in free.limits():
        costs, spare = added(limit.costs), up_to(limit.most) - total(limit.costs, places)
        kept &= costs[lowered][:, None] + costs[raised] <= spare
    pairs = np.argwhere(kept)
    sums = lost[lowered][pairs[:, 0]] + lost[raised][pairs[:, 1]]
    for one, other in pairs[np.argsort(sums, kind="stable")]:
        candidate = list(chosen)
        for site, place in (changes[lowered[one]], changes[raised[other]]):
            candidate[site] = free.open[site][place]
        yield candidate


@dataclass(frozen=True)
class _Cost:
    """`(rest + Σ price) / whole ≤ most`: what a budget limits.

    Attributes:
        name: its key in the budget, and behind a space where it is counted.
        price: of an option.
        rest: what no choice changes.
        whole: of the dense model.
        most: of the ratio.
    """

    name: str
    price: Price
    rest: float
    whole: float
    most: float

    @property
    def key(self) -> str:
        """`latency_ratio` of `latency_ratio at batch 1`."""
        return self.name.partition(" ")[0]

    def limit(self, prices: Table) -> Limit:
        """The same of the sum alone."""
        return Limit(self.name, prices, self.most * self.whole - self.rest)

    def ratio(self, spent: float) -> float:
        """A sum in the unit of the budget."""
        return (self.rest + spent) / self.whole if self.whole else 1.0


def _costs(model: PricedModel, budget: Budget) -> list[_Cost]:
    """The costs that a budget limits."""
    found = []
    if budget.size_ratio is not None:
        size = _Cost("size_ratio", _bytes, model.rest_bytes, model.bytes, budget.size_ratio)
        found.append(size)
    if budget.effective_bits is not None:
        whole = max(sum(site.weights for site in model.sites), 1) / 8
        found.append(_Cost("effective_bits", _bytes, 0.0, whole, budget.effective_bits))
    if budget.latency_ratio is not None:
        for batch in model.batches:
            name, price = f"latency_ratio at batch {batch}", _milliseconds(batch)
            rest, whole = model.rest_milliseconds.get(batch, 0.0), model.dense_run(batch)
            found.append(_Cost(name, price, rest, whole, budget.latency_ratio))
    return found


class _Free:
    """The options that the gate lets through, by their numbers."""

    def __init__(self, model: PricedModel, budget: Budget) -> None:
        self.model, self.budget = model, budget
        self.open = [_open(site, budget) for site in model.sites]
        self.costs = _costs(model, budget)

    def table(self, price: Price) -> list[list[float]]:
        """A price for each of them."""
        return [
            [price(site, site.options[number]) for number in numbers]
            for site, numbers in zip(self.model.sites, self.open, strict=True)
        ]

    def numbers(self, chosen: Sequence[int]) -> list[int]:
        """Numbers among all options, from numbers among those that are open."""
        return [numbers[number] for numbers, number in zip(self.open, chosen, strict=True)]

    def limits(self) -> list[Limit]:
        """Those of the budget that are sums over the sites."""
        return [cost.limit(self.table(cost.price)) for cost in self.costs]

    def cost(self, site: PricedSite, option: Option) -> float:
        """Share of the model's bytes, plus share of its sites' time, mean over the batches."""
        found = option.bytes / max(self.model.bytes, 1)
        times = [
            option.milliseconds[batch] / max(self._dense_milliseconds(batch), RESOLUTION_MS)
            for batch in self.model.batches
        ]
        return found + (sum(times) / len(times) if times else 0.0)

    def refusal(self, error: Impossible) -> str:
        """What cannot be kept, and what can."""
        name = error.name.partition(" ")[0]
        wanted = getattr(self.budget, name)
        beside = " and ".join(self._said(other) for other in error.others)
        what = f"{self._said(error.name)} cannot be kept"
        what += f" together with {beside}" if beside else ""
        ratios = {cost.name: cost.ratio(error.least) for cost in self.costs}
        return (
            f"budget: {what}: the least that the options of this model reach is "
            f"{rounded_up(ratios.get(error.name, error.least))}; raise it from {wanted:g}"
            + (f", or {beside}" if beside else "")
        )

    def _said(self, name: str) -> str:
        key, _, where = name.partition(" ")
        return f"{key}={getattr(self.budget, key):g}" + (f" {where}" if where else "")

    def _dense_milliseconds(self, batch: int) -> float:
        return sum(site.dense.milliseconds[batch] for site in self.model.sites)


def _open(site: PricedSite, budget: Budget) -> list[int]:
    if site.fixed is not None:
        if not np.isfinite(site.options[site.fixed].distortion):
            scheme = site.options[site.fixed].scheme
            raise PlanError(
                f"{site.name}: as {scheme} it makes outputs that are not finite; choose another "
                "scheme for it, or keep it dense"
            )
        return [site.fixed]
    return [
        number
        for number, option in enumerate(site.options)
        if np.isfinite(option.distortion) and not site.gate(option, budget)
    ]


def _milliseconds(batch: int) -> Price:
    return lambda _, option: option.milliseconds[batch]


def _bytes(_: PricedSite, option: Option) -> float:
    return float(option.bytes)


def _distortion(_: PricedSite, option: Option) -> float:
    return option.distortion


def reason(site: PricedSite, number: int, budget: Budget) -> str:
    """Why an option was chosen, or, for dense, why the others were not."""
    chosen = site.options[number]
    if site.fixed is not None:
        return "asked for"
    if chosen is not site.dense:
        how = "measured" if chosen.measured else "predicted"
        return f"auto: {_ratios(site, chosen)}, distortion {chosen.distortion:.2g} ({how})"
    others = site.options[1:]
    if not others:
        return "kept dense: no form of this shape is smaller"
    gates = [(option, site.gate(option, budget)) for option in others]
    refused = [f"{option.scheme} {gate}" for option, gate in gates if gate]
    if len(refused) == len(others):
        return f"kept dense: {refused[0]}"
    best = min((option for option, gate in gates if not gate), key=lambda o: o.distortion)
    return f"kept dense: {best.scheme} would add {best.distortion:.2g} to the distortion"


def runners_up(site: PricedSite, number: int, budget: Budget) -> list[dict[str, str]]:
    """The options that were not chosen, each with the reason."""
    return [
        {"scheme": option.scheme, "reason": _why_not(site, option, site.options[number], budget)}
        for other, option in enumerate(site.options)
        if other != number
    ]


def _why_not(site: PricedSite, option: Option, chosen: Option, budget: Budget) -> str:
    gate = site.gate(option, budget)
    if gate:
        return gate
    if not np.isfinite(option.distortion):
        return "makes outputs that are not finite"
    more = option.distortion - chosen.distortion
    changed = "more" if more >= 0 else "less"
    return f"{_ratios(site, option)}, {abs(more):.2g} {changed} distortion"


def _ratios(site: PricedSite, option: Option) -> str:
    parts = [f"{option.bytes / site.dense.bytes:.2f}× the bytes"]
    parts += [site.times_dense(option, batch) for batch in option.milliseconds]
    return ", ".join(parts)
