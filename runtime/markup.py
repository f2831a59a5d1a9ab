"""HTML and SVG by their elements; whatever is not made here is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_NUMBER = re.compile(r"[+-]?[\d,]+(\.\d+)?(e[+-]\d+)?[%×]?")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Markup:
    """`<name attributes>children</name>`; children that are no `Markup` are text.

    Attributes whose value is None are left out. Underscores stand for hyphens, and one at the end
    for nothing: `class_`, `text_anchor`.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], separator: str = "") -> Markup:
    """All parts in a row; those that are no `Markup` are text."""
    return Markup(
        separator.join(part if isinstance(part, Markup) else escape(part) for part in parts)
    )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    class_: str | None = None,
    notes: Sequence[str] | None = None,
) -> Markup:
    """A table that scrolls by itself where it is too wide; cells of numbers stand to the right.

    Args:
        headings: of the columns.
        rows: as long as the headings.
        class_: of the table.
        notes: one under each row, over the whole width; an empty one takes no room.
    """
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(headings))]
    alignments = ["number" if number else None for number in numeric]
    head = [element("th", name, class_=how) for name, how in zip(headings, alignments, strict=True)]
    body = []
    for row, note in zip(rows, notes or [""] * len(rows), strict=True):
        cells = [element("td", cell, class_=how) for cell, how in zip(row, alignments, strict=True)]
        body.append(element("tr", *cells, class_="noted" if note else None))
        if note:
            width = element("td", element("div", note), colspan=len(headings))
            body.append(element("tr", width, class_="note"))
    whole = element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", joined(body, "\n")),
        class_=class_,
    )
    return element("div", whole, class_="scroll")


def _is_number(cell: str) -> bool:
    return cell in ("", "–") or _NUMBER.fullmatch(cell) is not None
