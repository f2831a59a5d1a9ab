"""`report.html`: one self-contained page that shows what `report.json` holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from .markup import Markup, element, joined, table
from .plan_html import plan_html
from .plan_report import times
from .sites_html import site_bars, site_table
from .table import text

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>undense report</title>
<style>
$style</style>
</head>
<body>
$body
</body>
</html>
""")
_WARNING = "warning: "


def report_html(
    report: Mapping[str, Any],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    summary: Iterable[str],
) -> str:
    """The page for a report; nothing in it is loaded from elsewhere and all text is escaped.

    Args:
        report: as in `report.json`.
        headings: of the table of sites.
        rows: of it, as text.
        summary: sentences about the whole.
    """
    planning = report.get("planning")
    parts = [
        element("header", element("h1", "undense report"), element("p", _made_for(report))),
        element("div", *_tiles(report), class_="tiles"),
        *(element("p", warning, class_="warning") for warning in report.get("warnings", ())),
        *([plan_html(planning, report)] if planning else []),
        _section("Error and time of each site" if planning else "Error of each site",
                 site_bars(report)),
        _section("Sites", site_table(report, headings, rows)),
        *_operators(report.get("operators")),
        _section("Not replaced", _refusals(report["refusals"])),
        _section("Made from", _listed(_facts(report, summary))),
    ]  # fmt: skip
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return _PAGE.substitute(style=style, body="\n".join(parts))


def _section(heading: str, *parts: Markup) -> Markup:
    return element("section", element("h2", heading), *parts)


def _made_for(report: Mapping[str, Any]) -> str:
    parts = [report.get("target"), report.get("dtype")]
    return ", ".join(part for part in parts if part)


def _tiles(report: Mapping[str, Any]) -> Iterator[Markup]:
    """The few numbers that everybody asks for."""
    sizes, sites = report["bytes"], report["sites"]
    after = sizes.get("after")
    if after is not None and sizes["before"]:
        change = f"{_bytes(sizes['before'])} → {_bytes(after)}"
        yield _tile("weights", f"{after / sizes['before']:.1%}", change)
    else:
        yield _tile("weights", _bytes(sizes["before"]), "dense")
    replaced = sum(site["scheme"] != "dense" for site in sites)
    yield _tile("sites replaced", str(replaced), f"of {len(sites)}")
    planning = report.get("planning")
    if not planning:
        return
    latency = report.get("latency") or {}
    for batch, ratio in planning["latency_ratio"].items():
        name = f"time of a run, batch {batch}"
        if batch in latency:
            yield _tile(
                name, times(latency[batch]["ratio"]), f"of dense measured, {times(ratio)} predicted"
            )
        else:
            yield _tile(name, times(ratio), "of dense, predicted")
    validation = report.get("validation")
    of_outputs = f"budget {planning['budget'].replace(',', ', ')}"
    if validation:
        drop = f"max_drop {text(validation['max_drop'])}, {validation['drop_type']}"
        yield _tile("drop of the metric", text(validation["drop"]), drop)
        of_outputs = "of the outputs, where the metric is the limit"
    yield _tile("distortion", text(planning["distortion"]), of_outputs)
    yield _tile("stored bits", f"{planning['effective_bits']:.3g}", "a weight of the sites")


def _tile(name: str, value: str, detail: str) -> Markup:
    return element(
        "div", element("h3", name), element("strong", value), element("span", detail), class_="tile"
    )


def _bytes(count: int) -> str:
    """`4.2 MB`."""
    if count < 1000:
        return f"{count} bytes"
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {['', 'kB', 'MB', 'GB', 'TB'][power]}"


def _operators(counts: Mapping[str, Mapping[str, int]] | None) -> Iterator[Markup]:
    """How many nodes of each operator there are before and after; nothing in older reports."""
    if not counts:
        return
    before, after = counts["before"], counts["after"]
    rows = []
    for name in sorted({**before, **after}, key=lambda name: -abs(_change(before, after, name))):
        change = _change(before, after, name)
        found = (before.get(name, 0), after.get(name, 0))
        rows.append([name, *map(str, found), f"{change:+d}" if change else ""])
    rows.append(["all", *(str(sum(found.values())) for found in (before, after)), ""])
    yield _section("Graph", table(("operator", "before", "after", "change"), rows, class_="narrow"))


def _change(before: Mapping[str, int], after: Mapping[str, int], name: str) -> int:
    return after.get(name, 0) - before.get(name, 0)


def _refusals(refusals: Sequence[Mapping[str, str]]) -> Markup:
    if not refusals:
        return element("p", "Every weight is a site.")
    return _listed(
        joined((element("b", refusal["name"]), f": {refusal['reason']}")) for refusal in refusals
    )


def _facts(report: Mapping[str, Any], summary: Iterable[str]) -> Iterator[str]:
    """What the summary says but for warnings, which stand above, and the calibration data."""
    calibration = report.get("calibration")
    if calibration:
        yield (
            f"calibration: {calibration['samples']} samples, {calibration['tokens']:,} tokens, "
            f"sha256 {text(calibration['sha256'])}"
        )
    yield from (line for line in summary if not line.startswith(_WARNING))


def _listed(lines: Iterable[str]) -> Markup:
    return element("ul", joined((element("li", line) for line in lines), "\n"))
