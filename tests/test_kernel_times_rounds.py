"""Rounds of timing on a clock that the calls themselves move, so that nothing depends on pace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from undense.backend.kernel_times.rounds import error, in_rounds

PAUSE = 0.05


class Clock:
    """Seconds that pass only in calls and pauses; calls take `pace(now)` times their cost.

    A call behind a pause takes `stalled` times as long.
    """

    def __init__(
        self, pace: Callable[[float], float] = lambda now: 1.0, stalled: float = 1
    ) -> None:
        self.now, self.pace, self.stalled = 0.0, pace, stalled
        self.slept = False
        self.order: list[str] = []

    def tell(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept = True

    def call(self, name: str, cost: float) -> None:
        self.order.append(name)
        self.now += cost * self.pace(self.now) * (self.stalled if self.slept else 1)
        self.slept = False

    def times(self, seconds: float, **costs: float) -> dict[str, list[float]]:
        calls = {name: partial(self.call, name, cost) for name, cost in costs.items()}
        return in_rounds(calls, seconds, pause=PAUSE, clock=self.tell, sleep=self.sleep)


def test_all_take_a_turn_in_each_round_and_every_other_round_goes_backwards() -> None:
    clock = Clock()
    clock.times(1, a=0.001, b=0.001)
    one, other = 6 * "a", 6 * "b"
    assert "".join(clock.order) == one + other + other + one + one + other


def test_the_first_call_of_a_turn_does_not_count_however_long_it_takes() -> None:
    found = Clock(stalled=2.5).times(0, short=0.001, long=0.5)
    assert found["short"] == pytest.approx([0.001] * 3 * 5)
    assert found["long"] == pytest.approx([0.5] * 3)


def test_a_turn_is_not_longer_than_its_share() -> None:
    clock = Clock()
    clock.times(0, a=0.009)
    assert len(clock.order) == 3 * (1 + 3)


def test_steady_calls_need_no_more_than_the_least_rounds() -> None:
    clock = Clock()
    found = clock.times(1e6, a=0.001, b=0.002)
    assert {len(samples) for samples in found.values()} == {15}
    assert clock.now < 1


def test_unsteady_calls_are_repeated_until_the_time_is_up() -> None:
    jumps = iter(np.random.default_rng(0).uniform(1, 100, 10**5))
    clock = Clock(lambda now: next(jumps))
    found = clock.times(20, a=0.0001)
    a_round = PAUSE + 0.01 + 0.02 + 0.01
    assert 20 < clock.now < 20 + a_round
    assert len(found["a"]) > 100


def test_unsteady_calls_stop_when_their_median_is_known() -> None:
    jumps = iter(np.random.default_rng(0).uniform(1, 1.2, 10**5))
    clock = Clock(lambda now: next(jumps))
    found = clock.times(1e6, a=0.001)
    assert 15 < len(found["a"]) < 200
    assert error(found["a"]) <= 0.01


def test_a_change_of_pace_hits_all_alike() -> None:
    clock = Clock(lambda now: 1 + 2 * (int(now / 3) % 2))
    found = clock.times(60, a=0.001, b=0.002, c=0.004)
    medians = {name: float(np.mean(samples)) for name, samples in found.items()}
    assert medians["b"] / medians["a"] == pytest.approx(2, rel=0.05)
    assert medians["c"] / medians["a"] == pytest.approx(4, rel=0.05)


def test_the_error_is_that_of_a_median() -> None:
    random = np.random.default_rng(0)
    draws = [random.normal(1, 0.1, 400) for _ in range(500)]
    assert error(list(draws[0])) == pytest.approx(np.std(np.median(draws, axis=1)), rel=0.2)
    assert error([2.0, 2.0, 2.0]) == 0
    assert error([0.0, 0.0]) == 0


def test_what_comes_between_is_called_before_each_call() -> None:
    order: list[str] = []
    in_rounds(
        {"a": lambda: order.append("a")},
        0,
        pause=0,
        between=lambda: order.append("between"),
        sleep=lambda seconds: None,
    )
    assert order == ["between", "a"] * (len(order) // 2)
    assert len(order) == 2 * 3 * 6
