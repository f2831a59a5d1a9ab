"""The time that a stage still takes, told from the whole of it so far."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task
from rich.text import Text


class TimeLeftColumn(ProgressColumn):
    """A column of rich that expects the mean speed since the stage began.

    Rich's own takes the time between steps: with workers that finish together it is next to none,
    and before the second step there is no estimate. A task has the field `at`, the seconds that it
    had taken when it was last updated.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds, which count down between updates."""
        left = None
        if task.total is not None and task.elapsed is not None:
            at = task.fields.get("at") or 0.0
            left = seconds_left(task.completed, task.total, at, task.elapsed)
        if left is None:
            return Text("-:--:--", style="progress.remaining")
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours:d}:{minutes:02d}:{seconds:02d}", style="progress.remaining")


def seconds_left(done: float, total: float, at: float, now: float) -> float | None:
    """What `total - done` takes at the speed of `done`, or None if nothing is done.

    Args:
        done: units that were done at the last update.
        total: all units.
        at: seconds from the start to that update.
        now: seconds from the start.
    """
    if done >= total:
        return 0.0
    if done <= 0:
        return None
    return max(0.0, at * (total - done) / done - (now - at))
