"""Rows of text as a table in the terminal, and how values become text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With rich where a person looks on; else plain columns, which no width cuts off."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _print_rich(headings, rows)
        return
    table = [headings, *rows] if any(headings) else rows
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, show_header=any(headings), box=box.SIMPLE)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)


def text(value: Any) -> str:
    """A value as a person reads it: four digits, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return str(value)


def percent(value: float | None) -> str:
    """A share with two digits of percent, a dash for None."""
    return "–" if value is None else f"{value:.2%}"
