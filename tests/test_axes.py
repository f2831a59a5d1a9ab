"""Axes begin and end at round numbers around what they show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from undense.runtime.axes import linear_axis, log_axis

POSITIVE = st.floats(1e-30, 1e30)


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_every_value_has_its_place_and_order(values):
    for axis in (linear_axis(values), log_axis(values)):
        assert 2 <= len(axis.ticks) <= 8
        assert axis.place(axis.ticks[0]) == 0
        assert axis.place(axis.ticks[-1]) == pytest.approx(1)
        places = [axis.place(value) for value in sorted(values)]
        assert places == sorted(places)
        assert places[0] >= -1e-9
        assert places[-1] <= 1 + 1e-9


def test_ticks_are_round():
    assert log_axis([0.012, 0.4]).ticks == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    assert log_axis([3e-9, 0.5]).ticks == (1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 10.0)
    assert linear_axis([17.0, 2.0]).ticks == (0.0, 5.0, 10.0, 15.0, 20.0)
    assert linear_axis([]).ticks[-1] == 1.0


def test_places_are_to_scale():
    assert linear_axis([10.0]).place(2.5) == 0.25
    assert log_axis([1e-4, 1.0]).place(1e-2) == pytest.approx(0.5)
