"""Rows of the report: what became of each site, at what cost, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plan import Choice
from .sites import Refusal, Site

if TYPE_CHECKING:
    from .fit import FitResult


def site_rows(
    sites: Iterable[Site],
    choices: Mapping[str, Choice],
    results: Mapping[str, FitResult],
    stored: Mapping[str, int],
) -> list[dict[str, Any]]:
    """One row a site, with the fields that `report.json` and `inspect --json` promise.

    A site without choice is as it stands in a model that was not compiled. `stored` has the bytes
    of each.
    """
    rows = []
    for site in sites:
        choice, found = choices.get(site.name), results.get(site.name)
        rows.append(
            {
                "name": site.name,
                "in_features": site.in_features,
                "out_features": site.out_features,
                "users": len(site.uses),
                "scheme": "dense" if choice is None else choice.scheme,
                "bits_per_weight": 8 * stored[site.name] / (site.out_features * site.in_features),
                "relative_error": 0.0 if found is None else found.relative_error,
                "reason": "" if choice is None else choice.reason,
            }
        )
    return rows


def refusal_rows(refusals: Sequence[Refusal]) -> list[dict[str, str]]:
    """One row for each weight that is no site."""
    return [{"name": refusal.name, "reason": refusal.reason} for refusal in refusals]
