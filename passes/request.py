"""What a compile is asked to decide, checked as far as that goes without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import SchemeError
from .plan import Plan, read_plan
from .rules import Rule, matches
from .scheme import parse_scheme

Schemes = str | Sequence[Mapping[str, str]]
"""One scheme text for all sites, or rules of which the first match wins."""


def check_request(
    scheme: Schemes, ignored_scope: Sequence[str], plan: Plan | str | Path | None, seed: int
) -> Plan | None:
    """The plan that is to be carried out, if one is given.

    Raises:
        SchemeError: a scheme, rule, pattern or seed that is not understood, or that stands beside
            a plan.
        PlanError: a plan that cannot be read.
    """
    if isinstance(scheme, str):
        parse_scheme(scheme)
    else:
        for number, item in enumerate(scheme, 1):
            Rule.parse(item, f"rule {number}")
    for pattern in ignored_scope:
        matches(pattern, "")
    if seed < 0:
        raise SchemeError(f"seed {seed}: give 0 or more")
    if plan is None:
        return None
    if scheme != "auto" or ignored_scope:
        raise SchemeError(
            "a plan has the scheme of every site: leave it out, or scheme, rules and ignored "
            "patterns"
        )
    return plan if isinstance(plan, Plan) else read_plan(plan)
