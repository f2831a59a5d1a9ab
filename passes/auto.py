"""A budget and priced options → the choice of every site, and why: `scheme="auto"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .allocate import Impossible, Limit, Table, allocate, total
from .budget import Budget
from .errors import PlanError
from .pricing import RESOLUTION_MS, Option, PricedModel, PricedSite

_GROUP = re.compile(r"\{group=\d+\}|(?<=\{)group=\d+,|,group=\d+")

_KEPT = 1 + 1e-9
"""Times a limit, up to which a sum keeps it."""

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
        PlanError: no choice keeps the limits; names the one that cannot be kept, and how near to
            it one can come.
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


def pareto(model: PricedModel, points: int = 5) -> list[list[int]]:
    """Choices of least distortion, from the smallest model to one near dense.

    The limits of their bytes are in equal ratios; choices that are the same stand once.
    """
    free = _Free(model, Budget(size_ratio=1.0))
    sizes = free.table(_bytes)
    least, most = (float(sum(map(pick, sizes))) for pick in (min, max))
    found: list[list[int]] = []
    for limit in np.geomspace(max(least, 1), max(most, 1), points + 1)[:-1]:
        limits = [Limit("size_ratio", sizes, _KEPT * float(limit))]
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
    costs = [
        ("size_ratio", model.size_ratio(chosen)),
        ("effective_bits", model.effective_bits(chosen)),
        *(("latency_ratio", model.latency_ratio(chosen, batch)) for batch in model.batches),
    ]
    found: dict[str, float] = {}
    for name, cost in costs:
        limit = getattr(budget, name)
        if limit is not None and cost > _KEPT * limit:
            found[name] = max(cost, found.get(name, 0.0))
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
        costs, spare = added(limit.costs), _KEPT * limit.most - total(limit.costs, places)
        kept &= costs[lowered][:, None] + costs[raised] <= spare
    pairs = np.argwhere(kept)
    sums = lost[lowered][pairs[:, 0]] + lost[raised][pairs[:, 1]]
    for one, other in pairs[np.argsort(sums, kind="stable")]:
        candidate = list(chosen)
        for site, place in (changes[lowered[one]], changes[raised[other]]):
            candidate[site] = free.open[site][place]
        yield candidate


class _Free:
    """The options that the gate lets through, by their numbers."""

    def __init__(self, model: PricedModel, budget: Budget, *, gated: bool = True) -> None:
        self.model, self.budget = model, budget
        self.open = [
            _open(site, budget) if gated else list(range(len(site.options))) for site in model.sites
        ]

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
        model, budget = self.model, self.budget
        limits = []
        sizes = self.table(_bytes)
        if budget.size_ratio is not None:
            most = budget.size_ratio * model.bytes - model.rest_bytes
            limits.append(Limit("size_ratio", sizes, most))
        if budget.effective_bits is not None:
            weights = sum(site.weights for site in model.sites)
            limits.append(Limit("effective_bits", sizes, budget.effective_bits * weights / 8))
        if budget.latency_ratio is not None:
            for batch in model.batches:
                rest = model.rest_milliseconds.get(batch, 0.0)
                times = self.table(_milliseconds(batch))
                name = f"latency_ratio at batch {batch}"
                limits.append(
                    Limit(name, times, budget.latency_ratio * model.dense_run(batch) - rest)
                )
        return limits

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
        return (
            f"budget: {what}: the least that the options of this model reach is "
            f"{self._ratio(error):.3g}; raise it from {wanted:g}"
            + (f", or {beside}" if beside else "")
        )

    def _said(self, name: str) -> str:
        key, _, where = name.partition(" ")
        return f"{key}={getattr(self.budget, key):g}" + (f" {where}" if where else "")

    def _ratio(self, error: Impossible) -> float:
        """The least sum in the unit of the budget."""
        model, name = self.model, error.name
        if name == "size_ratio":
            return (model.rest_bytes + error.least) / model.bytes
        if name == "effective_bits":
            return 8 * error.least / sum(site.weights for site in model.sites)
        if name == "max_drop":
            return error.least
        batch = int(name.rpartition(" ")[2])
        rest = model.rest_milliseconds.get(batch, 0.0)
        return (rest + error.least) / model.dense_run(batch)

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
