"""`progress(done, total, text)`: how long-running stages say where they are."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the work done of a total, and the name of the stage.

    Units are such that each takes as long as any other: the time that remains is told from them.
    The total may shrink where work turns out to be saved.
    """

    def __call__(self, done: int, total: int, text: str, /) -> None:
        """`done` of `total` units of the stage `text` are finished."""


def silent(done: int, total: int, text: str) -> None:
    """Says nothing."""
