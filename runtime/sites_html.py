"""The parts of `report.html` about sites: bars of error and time, and why each is as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .axes import Axis, linear_axis, log_axis
from .markup import Markup, element, joined, table
from .plan_report import times
from .table import percent

Site = Mapping[str, Any]


def site_bars(report: Mapping[str, Any]) -> Markup:
    """For each site a bar of its error, and where kernels were timed one at each batch."""
    sites, planning = report["sites"], report.get("planning")
    batches = [str(batch) for batch in planning["batches"]] if planning else []
    spent = {site["name"]: site["milliseconds"] for site in planning["sites"]} if planning else {}
    errors = [site["relative_error"] for site in sites if _positive(site.get("relative_error"))]
    if not errors:
        return element("p", "No site was changed.")
    error_axis = log_axis(errors)
    time_axes = {
        batch: linear_axis([value for times in spent.values() for value in times[batch].values()])
        for batch in batches
    }
    heads = [
        element("th", "site"),
        element("th", "scheme"),
        _scale("relative error", percent(error_axis.ticks[0]), percent(error_axis.ticks[-1])),
        *(
            _scale(f"ms at batch {batch}", "0", f"{axis.ticks[-1]:g}")
            for batch, axis in time_axes.items()
        ),
    ]
    rows = [
        element(
            "tr",
            element("th", site["name"], scope="row"),
            element("td", site["scheme"], class_="scheme"),
            _error_cell(error_axis, site.get("relative_error")),
            *(
                _time_cell(axis, spent[site["name"]][batch])
                for batch, axis in time_axes.items()
            ),
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
    report: Mapping[str, Any], headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> Markup:
    """The rows, each with what else was tried for the site, folded up under its reason."""
    others = (report.get("planning") or {}).get("runners_up", {})
    named = zip(report["sites"], rows, strict=True)
    return table(
        headings, [[*row[:-1], _reason(row[-1], others.get(site["name"]))] for site, row in named]
    )


def _reason(reason: str, others: Sequence[Mapping[str, str]] | None) -> Markup:
    if not others:
        return joined((reason,))
    terms = joined(
        joined((element("dt", other["scheme"]), element("dd", other["reason"])))
        for other in others
    )  # fmt: skip
    count = f"{len(others)} others"
    return joined(
        (reason, element("details", element("summary", count), element("dl", terms)))
    )  # fmt: skip


def _positive(value: float | None) -> bool:
    return value is not None and value > 0


def _scale(name: str, low: str, high: str) -> Markup:
    ends = element("span", element("span", low), element("span", high), class_="ends")
    return element("th", name, ends)


def _error_cell(axis: Axis, error: float | None) -> Markup:
    if error is None or error <= 0:
        return element("td", element("span", "exact" if error == 0 else "–"), class_="none")
    grid = [_line(axis.place(tick)) for tick in axis.ticks[1:-1]]
    # The least error would have no length.
    bar = _rect(max(axis.place(error), 0.01), 3, 8, "error")
    return _bar_cell([*grid, bar], percent(error), f"relative error {percent(error)}")


def _time_cell(axis: Axis, spent: Mapping[str, float]) -> Markup:
    dense, chosen = spent["dense"], spent["chosen"]
    bars = [
        _rect(axis.place(dense), 0, 14, "dense"),
        _rect(axis.place(chosen), 3, 8, "slower" if chosen > dense else "chosen"),
    ]
    said = f"{chosen:.3g} ms, dense {dense:.3g} ms"
    return _bar_cell(bars, f"{chosen:.3g}", said, times(chosen / dense if dense else None))


def _bar_cell(marks: Sequence[Markup], value: str, title: str, ratio: str = "") -> Markup:
    picture = element("svg", element("title", title), *marks, class_="bar", role="img")
    return element("td", picture, element("span", value, " ", element("small", ratio)))


def _rect(share: float, top: int, height: int, class_: str) -> Markup:
    return element("rect", y=top, width=f"{share:.1%}", height=height, rx=2, class_=class_)


def _line(share: float) -> Markup:
    place = f"{share:.1%}"
    return element("line", x1=place, x2=place, y1=0, y2=14, class_="grid")


def _legend(batches: Sequence[str]) -> list[Markup]:
    if not batches:
        return []
    keys = [
        element("span", class_=f"key {kind}") + element("span", said)
        for kind, said in (
            ("chosen", "time as planned"),
            ("slower", "the same, slower than dense"),
            ("dense", "dense"),
        )
    ]
    return [element("p", *map(Markup, keys), class_="legend")]
