"""The parts of `report.html` about sites: bars of error and time, and why each is as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Axis, linear_axis, log_axis
from .markup import Markup, element, joined, table
from .plan_report import times
from .table import percent


@dataclass(frozen=True)
class _Clock:
    """The axis of times, and the unit in which they are not all below 1."""

    axis: Axis
    unit: str
    scale: float

    @staticmethod
    def of(costs: Iterable[Mapping[str, float]]) -> _Clock:
        """For milliseconds of sites, dense and chosen."""
        spent = [cost[which] for cost in costs for which in ("dense", "chosen")]
        unit, scale = ("ms", 1.0) if max(spent) >= 1 else ("µs", 1e3)
        return _Clock(linear_axis([scale * value for value in spent]), unit, scale)


def site_bars(report: Mapping[str, Any]) -> Markup:
    """For each site a bar of its error, and where kernels were timed one at each batch."""
    sites, planning = report["sites"], report.get("planning")
    batches = [str(batch) for batch in planning["batches"]] if planning else []
    spent = {site["name"]: site["milliseconds"] for site in planning["sites"]} if planning else {}
    errors = [site["relative_error"] for site in sites if _positive(site.get("relative_error"))]
    if not errors:
        return element("p", "No site was changed.")
    error_axis = log_axis(errors)
    clocks = {batch: _Clock.of(costs[batch] for costs in spent.values()) for batch in batches}
    heads = [
        element("th", "site"),
        _scale("relative error", percent(error_axis.ticks[0]), percent(error_axis.ticks[-1])),
        *(
            _scale(f"{clock.unit} at batch {batch}", "0", f"{clock.axis.ticks[-1]:g}")
            for batch, clock in clocks.items()
        ),
    ]
    rows = [
        element(
            "tr",
            element("th", site["name"], element("small", site["scheme"]), scope="row"),
            _error_cell(error_axis, site.get("relative_error")),
            *(_time_cell(clock, spent[site["name"]][batch]) for batch, clock in clocks.items()),
        )
        for site in sites
    ]  # fmt: skip
    whole = element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", joined(rows, "\n")),
        class_="bars",
        style=f"--scales: {1 + len(batches)}",
    )
    return joined((*_legend(batches), whole))


def site_table(
    report: Mapping[str, Any], headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> Markup:
    """The rows, their last column and what else was tried for the site under each."""
    others = (report.get("planning") or {}).get("runners_up", {})
    return table(
        headings[:-1],
        [row[:-1] for row in rows],
        notes=[
            _reason(row[-1], others.get(site["name"], ()))
            for site, row in zip(report["sites"], rows, strict=True)
        ],
    )


def _reason(reason: str, others: Sequence[Mapping[str, str]]) -> Markup:
    if not others:
        return joined((reason,))
    terms = joined(
        joined((element("dt", other["scheme"]), element("dd", other["reason"]))) for other in others
    )
    count = element("summary", f"{len(others)} other options")
    return joined((reason, element("details", count, element("dl", terms))))


def _positive(value: float | None) -> bool:
    return value is not None and value > 0


def _scale(name: str, low: str, high: str) -> Markup:
    ends = element("span", element("span", low), element("span", high), class_="ends")
    return element("th", name, ends)


def _error_cell(axis: Axis, error: float | None) -> Markup:
    if error is None or error <= 0:
        return element("td", element("span", percent(error)), class_="none")
    grid = [_line(axis.place(tick)) for tick in axis.ticks[1:-1]]
    # The least error would have no length.
    bar = _rect(max(axis.place(error), 0.01), 3, 8, "error")
    return _bar_cell([*grid, bar], percent(error), f"relative error {percent(error)}")


def _time_cell(clock: _Clock, spent: Mapping[str, float]) -> Markup:
    dense, chosen = (clock.scale * spent[which] for which in ("dense", "chosen"))
    bars = [
        _rect(clock.axis.place(dense), 0, 14, "dense"),
        _rect(clock.axis.place(chosen), 3, 8, "slower" if spent["slower"] else "chosen"),
    ]
    said = f"{chosen:.3g} {clock.unit}, dense {dense:.3g} {clock.unit}"
    return _bar_cell(bars, f"{chosen:.3g}", said, times(spent["ratio"]))


def _bar_cell(marks: Sequence[Markup], value: str, title: str, ratio: str = "") -> Markup:
    picture = element("svg", element("title", title), *marks, class_="bar", role="img")
    return element("td", picture, element("span", value, element("small", ratio)))


def _rect(share: float, top: int, height: int, class_: str) -> Markup:
    return element("rect", y=top, width=f"{share:.1%}", height=height, rx=2, class_=class_)


def _line(share: float) -> Markup:
    place = f"{share:.1%}"
    return element("line", x1=place, x2=place, y1=0, y2=14, class_="grid")


def _legend(batches: Sequence[str]) -> list[Markup]:
    if not batches:
        return []
    kinds = {
        "chosen": "time as planned",
        "slower": "the same, slower than dense",
        "dense": "dense",
    }
    keys = [
        joined((element("span", class_=f"key {kind}"), element("span", said)))
        for kind, said in kinds.items()
    ]
    return [element("p", *keys, class_="legend")]
