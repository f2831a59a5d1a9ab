"""The part of `report.html` about a plan made by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Markup, element, joined, table
from .plan_report import (
    OTHER_POINTS,
    Planning,
    measure,
    plan_facts,
    point_headings,
    point_rows,
    scheme_rows,
)
from .plots import pareto_plot, prediction_plot


def plan_html(planning: Planning, report: Mapping[str, Any]) -> Markup:
    """The costs, the Pareto front, predictions beside measurements, and counts of schemes."""
    facts = joined(
        joined((element("dt", name), element("dd", fact)))
        for name, fact in plan_facts(planning, report)
    )
    return element(
        "section",
        element("h2", "Plan"),
        element("dl", facts),
        *(element("p", note, class_="warning") for note in planning["notes"]),
        element("div", _front(planning), _predictions(planning), class_="columns"),
    )


def _front(planning: Planning) -> Markup:
    caption = f"Distortion is the {measure(planning)}. The numbers are those of {OTHER_POINTS}."
    return element(
        "figure",
        element("h3", "Size and distortion"),
        pareto_plot(planning["pareto"], planning) or element("p", "No plan changes the outputs."),
        element("figcaption", caption),
        table(point_headings(planning), point_rows(planning)),
    )


def _predictions(planning: Planning) -> Markup:
    pairs = planning["prediction"]["pairs"]
    plot = prediction_plot(pairs)
    caption = "Each dot is an option of a site, that site alone replaced. On the line both agree."
    return element(
        "figure",
        element("h3", "Prediction and measurement"),
        plot or element("p", "No prediction was compared with a measurement."),
        *([element("figcaption", caption)] if plot else []),
        table(("sites", "scheme"), scheme_rows(planning), class_="narrow"),
    )
