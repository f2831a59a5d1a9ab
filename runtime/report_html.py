"""`report.html`: one self-contained page with a table and a bar for each site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>undense report</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left; }
th { position: sticky; top: 0; background: Canvas; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.bar { fill: #3b7dd8; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
<h1>undense report</h1>
<ul>
$summary
</ul>
<h2>Relative error of each site</h2>
$chart
<h2>Sites</h2>
<div class="scroll"><table>
<thead><tr>$headings</tr></thead>
<tbody>
$rows
</tbody></table></div>
<h2>Not replaced</h2>
$refusals
</body>
</html>
""")

_ROW_HEIGHT, _LABEL_WIDTH, _BAR_WIDTH, _VALUE_WIDTH = 16, 420, 480, 80


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
        summary: sentences above the table.
    """
    refusals = "\n".join(
        f"<li><b>{escape(str(item['name']))}</b>: {escape(str(item['reason']))}</li>"
        for item in report["refusals"]
    )
    return _PAGE.substitute(
        summary="\n".join(f"<li>{escape(line)}</li>" for line in summary),
        chart=_chart(report["sites"]),
        headings="".join(f"<th>{escape(heading)}</th>" for heading in headings),
        rows="\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows),
        refusals=f"<ul>\n{refusals}\n</ul>" if refusals else "<p>Every weight is a site.</p>",
    )


def _cell(text: str) -> str:
    number = text[:1].isdigit()
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"


def _chart(sites: Sequence[Mapping[str, Any]]) -> str:
    """A horizontal bar for each site whose error is known, to the scale of the largest."""
    known = [site for site in sites if site.get("relative_error") is not None]
    largest = max((site["relative_error"] for site in known), default=0.0)
    if not largest:
        return "<p>No site was changed.</p>"
    width = _LABEL_WIDTH + _BAR_WIDTH + _VALUE_WIDTH
    height = _ROW_HEIGHT * len(known)
    bars = []
    for index, site in enumerate(known):
        top, error = index * _ROW_HEIGHT, site["relative_error"]
        length = _BAR_WIDTH * error / largest
        bars.append(
            f'<text x="{_LABEL_WIDTH - 8}" y="{top + 12}" text-anchor="end">'
            f"{escape(str(site['name']))}</text>"
            f'<rect class="bar" x="{_LABEL_WIDTH}" y="{top + 3}" width="{length:.1f}" height="10">'
            f"<title>{escape(str(site.get('scheme')))}</title></rect>"
            f'<text x="{_LABEL_WIDTH + length + 6:.1f}" y="{top + 12}">{error:.2%}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="relative error of each site">\n' + "\n".join(bars) + "\n</svg>"
    )
