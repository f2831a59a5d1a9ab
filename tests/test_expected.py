"""When a compile says that its own check finds little."""

from __future__ import annotations

import pytest
from undense.backend.expected import DROWNING, Expected


def expected(tolerance: dict[str, float], rounding: float | None = None) -> Expected:
    return Expected([], tolerance, "", rounding)


@pytest.mark.parametrize("rounding", [None, 0.01])
def test_tight_bounds_need_no_warning(rounding: float | None):
    assert expected({"y": 0.9 * DROWNING}, rounding).warnings() == []


def test_rounded_activations_are_the_reason_where_they_drown_the_rest():
    (warning,) = expected({"y": 0.9}, 0.45).warnings()
    assert warning.startswith("rounding activations to int8 changes the checked outputs by 45%")


def test_the_loosest_output_is_named():
    (warning,) = expected({"a": 0.01, "b": 0.5, "c": 4.77}).warnings()
    assert "may change c by 477% on the checked inputs" in warning
    assert "2 of 3 outputs" in warning
