"""Choose, measure what was chosen, choose again; then hold the sum to the joint distortion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .auto import allowed, choose, least_distortion, swaps, uniform
from .budget import Budget, rounded_up, up_to
from .errors import PlanError
from .pricing import PricedModel
from .sensitivity import Sensitivities

_ROUNDS = 5
"""Of choosing and measuring; choices settle in two or three."""

_TIGHTENED = 1.05
_LOWERED = 0.1
"""Of the sum of a choice, where its joint distortion falls so slowly that the rounds are over."""
_SWAPS = 16
"""Exchanges of two sites that are measured, at most."""
_PROMISING = 4.0
"""Times the sum of a choice, up to which one scheme for all sites may lose less jointly: at some
tenths of a nat joint distortions are from two thirds to four thirds of the sum, and beyond."""
_UNIFORM = 8
"""Of these schemes that are measured, at most, whatever the time."""
_BETTER = 0.99
"""A swap is taken if it leaves less than this of the joint distortion."""

FALLING = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Distortions that are allowed in turn until a metric holds."""

_ADDITIVE = 1.1
"""Up to which ratio of joint distortion to sum, either way, the sum is taken at its word."""


@dataclass(frozen=True)
class Settled:
    """A choice, and what the model's outputs lose by it.

    Attributes:
        model: with all distortions that were measured on the way.
        chosen: the number of the option of each site.
        joint: the distortion with all sites replaced.
        swaps: pairs of sites whose options were exchanged because the sum misled.
    """

    model: PricedModel
    chosen: list[int]
    joint: float
    swaps: int = 0

    @property
    def alone(self) -> float:
        """The sum of what each site does alone; the larger it is, the less the choice costs."""
        return self.model.distortion(self.chosen)

    @property
    def additivity(self) -> float | None:
        """The joint distortion over the sum of what each site does alone."""
        return self.joint / self.alone if self.alone > 0 else None


def settle(model: PricedModel, budget: Budget, sensitivities: Sensitivities) -> Settled:
    """The choice that the budget allows, once measurements no longer change it.

    Args:
        model: priced.
        budget: its `max_drop` is held to the joint distortion.
        sensitivities: measure, as far as their time allows.

    Raises:
        PlanError: the budget cannot be kept.
    """
    limit = budget.max_drop
    if not budget.limits_cost:
        found = _chosen(model, budget, sensitivities, limit)
        return found if limit is None else _within(found, budget, sensitivities, limit)
    # Least distortion is the aim: the limit is of the joint one, which the sum does not tell.
    found = _chosen(model, budget, sensitivities, None)
    found = _uniform_if_better(found, budget, sensitivities)
    additivity = found.additivity
    if additivity and not 1 / _ADDITIVE < additivity < _ADDITIVE:
        found = _swapped(found, budget, sensitivities)
    _check_joint(found, budget)
    return found


def _check_joint(found: Settled, budget: Budget) -> None:
    """Refuses a choice of least distortion that loses too much."""
    costs, limit = budget.said_costs, budget.max_drop
    if not math.isfinite(found.joint):
        raise PlanError(
            f"budget: with {costs} the outputs of the model are not finite any more; raise that, "
            "or keep layers dense"
        )
    if limit is not None and found.joint > up_to(limit):
        raise PlanError(
            f"budget: max_drop={limit:g} cannot be kept together with {costs}: the least that was "
            f"found is {_said(found)}; raise it from {limit:g}, or {costs}"
        )


def settle_by_metric(
    model: PricedModel,
    budget: Budget,
    sensitivities: Sensitivities,
    holds: Callable[[Settled], bool],
) -> Settled:
    """The choice that the limits on costs allow, or without any the first whose metric holds.

    Then less and less distortion is allowed, beside what sites lose whose scheme was named. Where
    the metric never holds, the last choice is the one to give layers back from.

    Args:
        model: priced.
        budget: its `max_drop` is of the metric, and left to `holds`.
        sensitivities: measure, as far as their time allows.
        holds: whether the metric of a choice keeps `max_drop`.

    Raises:
        PlanError: the limits on costs cannot be kept.
    """
    if budget.limits_cost:
        return settle(model, replace(budget, max_drop=None), sensitivities)
    least = _named_alone(model, sensitivities)
    found: Settled | None = None
    for limit in FALLING:
        allowing = Budget(max_drop=least.joint + limit)
        try:
            tighter = settle(model if found is None else found.model, allowing, sensitivities)
        except PlanError:
            break
        if found is not None and tighter.chosen == found.chosen:
            continue
        found = tighter
        if holds(found):
            break
    return found or least


def _chosen(
    model: PricedModel, budget: Budget, sensitivities: Sensitivities, limit: float | None
) -> Settled:
    chosen = _nearest(model, budget, limit)
    for _ in range(_ROUNDS):
        refined = sensitivities.refine(model, chosen)
        if refined == model:
            break
        model = refined
        chosen = _nearest(model, budget, limit)
    return Settled(model, chosen, sensitivities.joint(model, chosen))


def _named_alone(model: PricedModel, sensitivities: Sensitivities) -> Settled:
    """Dense but for the schemes by name."""
    named = [site.fixed or 0 for site in model.sites]
    return Settled(model, named, sensitivities.joint(model, named))


def _said(found: Settled) -> str:
    """What a choice loses, and how that compares with what its layers lose alone."""
    beside = found.additivity and f", {found.additivity:.2f} times the sum of what each loses alone"
    return f"{rounded_up(found.joint)}{beside or ''}"


def _nearest(model: PricedModel, budget: Budget, limit: float | None) -> list[int]:
    """What the limit of the sum allows, or the least sum there is: the joint one may be less."""
    if limit is not None:
        limit = max(limit, least_distortion(model, budget))
    return choose(model, budget, limit)


def _within(found: Settled, budget: Budget, sensitivities: Sensitivities, limit: float) -> Settled:
    """Moves the limit of the sum until the joint distortion is just below the limit."""
    most = up_to(limit)
    best = found if found.joint <= most else None
    for _ in range(_ROUNDS):
        additivity = found.additivity
        if additivity is None or (best and (best.joint > 0.8 * limit or sensitivities.time_is_up)):
            break
        tightened = _TIGHTENED if found.joint > limit else 1.0
        before = found.chosen
        # Where errors cancel out altogether, the ratio is that of a choice without a limit.
        moved = limit / additivity / tightened if additivity else math.inf
        found = _chosen(found.model, budget, sensitivities, moved)
        if found.chosen == before:
            break
        if found.joint <= most and (best is None or found.alone >= best.alone):
            best = found
    return best or _lowered(found, budget, sensitivities, limit)


def _lowered(found: Settled, budget: Budget, sensitivities: Sensitivities, limit: float) -> Settled:
    """Lowers the sum by magnitudes, and at last leaves dense all that has no scheme by name.

    What that loses is said by the refusal: raised to it, the limit is kept for sure.
    """
    for _ in range(_ROUNDS):
        before = found.chosen
        found = _chosen(found.model, budget, sensitivities, _LOWERED * found.alone)
        if found.joint <= up_to(limit):
            return found
        if found.chosen == before:
            break
    found = _named_alone(found.model, sensitivities)
    if found.joint <= up_to(limit):
        return found
    if not math.isfinite(found.joint):
        raise PlanError(
            f"budget: max_drop={limit:g} cannot be kept: with the schemes that are named the "
            "outputs of the model are not finite any more; name others"
        )
    raise PlanError(
        f"budget: max_drop={limit:g} cannot be kept: with every layer dense whose scheme is not "
        f"named it is {_said(found)}; raise it from {limit:g}, or name other schemes"
    )


def _swapped(found: Settled, budget: Budget, sensitivities: Sensitivities) -> Settled:
    """Exchanges the options of pairs of sites as long as that lowers the joint distortion."""
    tried = 0
    improves = True
    while improves:
        improves = False
        for candidate in itertools.islice(
            swaps(found.model, budget, found.chosen, _SWAPS), _SWAPS - tried
        ):
            if sensitivities.time_is_up:
                break
            tried += 1
            joint = sensitivities.joint(found.model, candidate)
            if joint < _BETTER * found.joint:
                found = replace(found, chosen=candidate, joint=joint, swaps=found.swaps + 1)
                improves = True
                break
    return found


def _uniform_if_better(found: Settled, budget: Budget, sensitivities: Sensitivities) -> Settled:
    """One scheme for all sites where that loses less than the choice, jointly measured."""
    model, best = found.model, found
    most = _PROMISING * model.distortion(found.chosen)
    candidates = sorted(
        (
            candidate
            for candidate in uniform(model, budget, found.chosen)
            if candidate != found.chosen
            and model.distortion(candidate) < most
            and allowed(model, budget, candidate)
        ),
        key=model.distortion,
    )
    for candidate in candidates[:_UNIFORM]:
        joint = sensitivities.joint(model, candidate)
        if joint < best.joint:
            best = replace(best, chosen=candidate, joint=joint)
    return best
