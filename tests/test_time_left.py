"""The remaining time: that of the mean speed so far, for steps of any length."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from undense.runtime.time_left import TimeLeftColumn, seconds_left


@pytest.mark.parametrize("workers", [1, 4])
def test_steps_in_proportion_to_their_work_give_the_truth(workers: int) -> None:
    steps = [50, 1, 7, 30, 12] * 4
    total, speed = sum(steps), 2.5 * workers
    done = 0.0
    for step in steps[:-1]:
        done += step
        at = done / speed
        left = seconds_left(done, total, at, at + 1)
        assert left == pytest.approx((total - done) / speed - 1)


def test_it_never_says_less_than_nothing_and_nothing_when_it_is_done() -> None:
    assert seconds_left(0, 10, 0, 5) is None
    assert seconds_left(5, 10, 3, 100) == 0
    assert seconds_left(10, 10, 3, 100) == 0


def test_the_column_is_drawn() -> None:
    now = 0.0
    console = Console(file=io.StringIO())
    with Progress(TimeLeftColumn(), console=console, get_time=lambda: now) as bars:
        task = bars.add_task("fit", total=10)
        column = TimeLeftColumn()
        assert column.render(bars.tasks[0]).plain == "-:--:--"
        now = 1000.0
        bars.update(task, completed=2, at=bars.tasks[0].elapsed)
        assert column.render(bars.tasks[0]).plain == "1:06:40"
        now = 1030.0
        assert column.render(bars.tasks[0]).plain == "1:06:10"
