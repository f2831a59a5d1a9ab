"""A progress bar on stderr, where that is a terminal, with the time that remains, drawn by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yields `report(done, total, text)`, which draws one bar for each stage `text`."""
    if quiet:
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    from .time_left import TimeLeftColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def report(done: int, total: int, text: str) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total)
            at = bars.tasks[tasks[text]].elapsed
            bars.update(tasks[text], completed=done, total=total, at=at)

        yield report
