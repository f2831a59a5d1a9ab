"""What a compile is asked to decide, checked as far as that goes without a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .budget import BATCHES, PLAN_SECONDS, Budget
from .errors import SchemeError
from .plan import Plan, read_plan
from .rules import Rule, matches
from .scheme import parse_scheme

Schemes = str | Sequence[Mapping[str, str]]
"""One scheme text for all sites, or rules of which the first match wins."""


@dataclass(frozen=True)
class Request:
    """How every site gets its scheme.

    Attributes:
        scheme: as `Schemes`.
        ignored_scope: patterns of sites that stay dense.
        plan: that is to be carried out instead.
        budget: of a plan made by measurement; None is `Budget`'s own.
        batch: at which kernels are timed.
        plan_time: seconds for measurements of distortion.
        point: a point of the Pareto table, from 1, instead of what the budget chooses.
        predicts: whether schemes by name are measured as well, to say what they cost.
        validated: whether `max_drop` is of a metric that is measured, and not of the distortion.
    """

    scheme: Schemes = "auto"
    ignored_scope: Sequence[str] = ()
    plan: Plan | None = None
    budget: Budget | None = None
    batch: Sequence[int] = BATCHES
    plan_time: float = PLAN_SECONDS
    point: int | None = None
    predicts: bool = False
    validated: bool = False

    @staticmethod
    def checked(
        scheme: Schemes = "auto",
        ignored_scope: Sequence[str] = (),
        plan: Plan | str | Path | None = None,
        budget: Mapping[str, float] | str | None = None,
        batch: Sequence[int] | int = BATCHES,
        plan_time: float = PLAN_SECONDS,
        point: int | None = None,
        validated: bool = False,
    ) -> Request:
        """The request of these arguments.

        Raises:
            SchemeError: a scheme, rule, pattern, budget or number that is not understood, or one
                that stands beside a plan.
            PlanError: a plan that cannot be read.
        """
        _check_schemes(scheme, ignored_scope)
        limits = None if budget is None else Budget.parse(budget)
        sizes = list(batch) if isinstance(batch, Iterable) else [batch]
        if not sizes or not all(_whole(size) for size in sizes):
            raise SchemeError(f"batch {batch!r}: give whole numbers of 1 or more")
        if not (isinstance(plan_time, int | float) and 0 <= plan_time < math.inf):
            raise SchemeError(f"plan time {plan_time!r}: give seconds, 0 or more")
        if point is not None and not _whole(point):
            raise SchemeError(f"point {point!r}: points are counted from 1")
        if plan is not None:
            if scheme != "auto" or ignored_scope or limits is not None:
                raise SchemeError(
                    "a plan has the scheme of every site: leave it out, or scheme, rules, ignored "
                    "patterns and budget"
                )
            if validated:
                raise SchemeError(
                    "a plan is carried out as it stands: leave it out, or the validation function"
                )
            plan = read_plan(plan) if isinstance(plan, str | Path) else plan
            if not isinstance(plan, Plan):
                raise SchemeError(f"plan is a {type(plan).__name__}; give a plan, or its path")
        if validated:
            limits = limits or Budget.parse(None)
            if limits.max_drop is None:
                raise SchemeError(
                    f"budget {str(limits)!r}: does not say how far the metric may drop; add "
                    "max_drop, or leave the validation function out"
                )
        batches = tuple(dict.fromkeys(sizes))
        return Request(
            scheme, ignored_scope, plan, limits, batches, plan_time, point, validated=validated
        )

    def check_budget(self, *, automatic: bool, calibrated: bool, sites: bool) -> None:
        """Refuses a budget that nothing can be planned for.

        Raises:
            SchemeError: no site is left to choose for, or there is no data to measure with.
        """
        if self.budget is None and self.point is None:
            return
        if self.validated and self.budget is not None and not self.budget.limits_cost:
            return  # layers are given back until the metric holds, however they were chosen
        if not sites:
            raise SchemeError(
                "budget: the model has no linear that can be replaced; undense inspect says why of "
                "each weight; leave the budget out to compile it as it is"
            )
        if not automatic:
            raise SchemeError(
                "budget: every site has a scheme by name, so that nothing is left to choose; give "
                "some the scheme auto, or leave the budget out (all but max_drop with a validation "
                "function)"
            )
        if not calibrated:
            raise SchemeError(
                "budget: what forms cost the outputs is measured on calibration data; give some"
            )


def _whole(value: object) -> bool:
    """Whether it is a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return int(value) >= 1


def _check_schemes(scheme: Schemes, ignored_scope: Sequence[str]) -> None:
    if isinstance(scheme, str):
        parse_scheme(scheme)
    else:
        for number, item in enumerate(scheme, 1):
            Rule.parse(item, f"rule {number}")
    if isinstance(ignored_scope, str):
        raise SchemeError(f"ignored patterns {ignored_scope!r}: give a list of patterns")
    for pattern in ignored_scope:
        matches(pattern, "")
