"""How many layers are given back for a metric: fakes that fall evenly, jump, or never hold."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing import BITS, model, schemes, site
from undense.passes.accuracy import AllowedDrop, fewest, give_back, parse_drop_type
from undense.passes.auto import exceeded
from undense.passes.budget import Budget
from undense.passes.errors import PlanError, SchemeError
from undense.passes.sensitivity import Sensitivities
from undense.passes.settle import FALLING, settle_by_metric

EIGHT, FOUR, TWO = BITS


@pytest.mark.parametrize(("drop_type", "expected"), [("absolute", 0.2), ("relative", 0.25)])
def test_a_drop_is_in_the_unit_of_the_metric_or_a_share_of_it(drop_type, expected):
    assert AllowedDrop(0.8, 0.01, drop_type).drop(0.6) == pytest.approx(expected)


def test_metrics_below_zero_drop_as_they_fall():
    assert AllowedDrop(-2.0, 0.01, "relative").drop(-3.0) == pytest.approx(0.5)
    assert AllowedDrop(-2.0, 0.01, "absolute").drop(-1.0) == -1.0


def test_nothing_is_relative_to_zero():
    with pytest.raises(PlanError, match=r"is 0.*choose the absolute drop"):
        AllowedDrop(0.0, 0.01, "relative")


def test_an_unknown_type_of_drop_is_refused():
    assert parse_drop_type("relative") == "relative"
    with pytest.raises(SchemeError, match=r"'percent' is not known.*absolute and relative ones"):
        parse_drop_type("percent")


@given(st.integers(0, 200), st.integers(0, 200), st.integers(-1, 150))
def test_the_least_number_that_holds_is_found_in_few_steps(count, needed, failed):
    needed, failed = min(needed, count), min(failed, count - 1)
    asked = []

    def holds(number):
        asked.append(number)
        return number >= needed

    assert fewest(count, holds, failed) == max(needed, failed + 1)
    assert all(failed < number < count for number in asked)
    assert len(asked) == len(set(asked)) <= 2 * math.log2(count + 2) + 2


@given(st.sets(st.integers(0, 40)))
def test_a_metric_that_is_not_monotone_ends_where_one_fewer_fails(holding):
    found = fewest(40, holding.__contains__)
    assert found in holding | {40}
    assert found - 1 not in holding


class Built:
    """Drops of models that were built, by the number that was given back."""

    def __init__(self, drop):
        self.drop, self.numbers = drop, []

    def __call__(self, number):
        self.numbers.append(number)
        return self.drop(number)


def test_what_holds_at_once_is_built_once():
    built = Built(lambda _: 0.005)
    found = give_back(10, lambda _: 0.004, built, 0.01)
    assert (built.numbers, found.before, found.drop) == ([0], (), 0.005)


def test_the_number_is_found_before_anything_is_built():
    built = Built(lambda number: 0.1 - 0.01 * number)
    found = give_back(20, built.drop, built, 0.035)
    assert built.numbers == [7]
    assert found.drop == pytest.approx(0.03)
    assert len(found.before) == 7
    assert all(drop > 0.035 for drop in found.before)
    assert list(found.before) == sorted(found.before, reverse=True)


def test_what_a_build_drops_beyond_its_prediction_is_made_up_for():
    # The engine rounds activations, which the prediction does not see: 0.05, less with each layer.
    built = Built(lambda number: 0.1 * (1 - number / 10) + 0.05 * (1 - number / 10))
    found = give_back(10, lambda number: 0.1 * (1 - number / 10), built, 0.041)
    assert built.numbers == [6, 8]
    assert found.drop == pytest.approx(0.03)
    assert found.before[6:] == (pytest.approx(0.06), pytest.approx(0.045))


def test_a_build_that_never_holds_ends_with_everything_given_back():
    built = Built(lambda number: 0.0 if number == 50 else 1.0)
    found = give_back(50, lambda _: 0.0, built, 0.01)
    assert built.numbers[-1] == 50
    assert len(built.numbers) <= 5
    assert built.numbers == sorted(set(built.numbers))
    assert (len(found.before), found.drop) == (50, 0.0)


def test_a_prediction_that_never_holds_builds_the_dense_model_alone():
    built = Built(lambda _: 0.0)
    found = give_back(6, lambda _: 1.0, built, 0.01)
    assert built.numbers == [6]
    assert found.before == (1.0,) * 6


def test_without_layers_the_dense_model_is_built():
    built = Built(lambda _: 0.0)
    assert give_back(0, built, built, 0.01).before == ()
    assert built.numbers == [0]


def _settled(budget, holds, **sites):
    """Sites `name=sensitivity`, the metric by the distortion."""
    priced = model(*(site(name, value) for name, value in sites.items()))
    errors = {(s.name, o.scheme): (o, s) for s in priced.sites for o in s.options}
    sensitivities = Sensitivities(
        lambda chosen: sum(errors[item][0].distortion for item in chosen.items()), seconds=1e9
    )
    return settle_by_metric(sensitivities.priced(priced), budget, sensitivities, holds)


def test_the_most_distortion_whose_metric_holds_is_chosen():
    seen = []

    def holds(settled):
        seen.append(settled.joint)
        return settled.joint <= 1e-3

    found = _settled(Budget(max_drop=0.5), holds, loud=1.0, quiet=0.05)
    assert schemes(found.model, found.chosen) == [EIGHT, FOUR]
    assert found.joint == seen[-1] <= 1e-3
    assert all(joint > 1e-3 for joint in seen[:-1])
    assert len(seen) > 1


def test_a_choice_that_failed_is_not_measured_again():
    measured = []
    found = _settled(Budget(max_drop=0.5), lambda s: measured.append(s.chosen), loud=1.0, quiet=1.0)
    assert all(one != other for one, other in pairwise(measured))
    assert len(measured) < len(FALLING)
    assert found.chosen == measured[-1]


def test_within_limits_of_cost_the_metric_is_not_asked():
    found = _settled(Budget(size_ratio=6 / 32, max_drop=1e-9), pytest.fail, loud=1.0, quiet=1e-3)
    assert schemes(found.model, found.chosen) == [EIGHT, FOUR]


def test_limits_that_dense_layers_exceed_are_told():
    priced = model(site("a"), site("b"))
    budget = Budget(size_ratio=0.5, effective_bits=20, max_drop=0.1)
    assert exceeded(priced, budget, [1, 1]) == {}
    assert exceeded(priced, budget, [0, 1]) == {"size_ratio": 0.625}
    assert exceeded(priced, budget, [0, 0]) == {"size_ratio": 1.0, "effective_bits": 32.0}
