"""How a choice is moved until its joint distortion keeps the drop, and what a refusal says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from pricing import BITS, model, schemes, site
from undense.passes.budget import Budget
from undense.passes.errors import PlanError
from undense.passes.pricing import PricedModel
from undense.passes.sensitivity import Sensitivities
from undense.passes.settle import Settled, settle

EIGHT, FOUR, TWO = BITS


def _settled(priced: PricedModel, budget: Budget, joint: Callable[[float, int], float]) -> Settled:
    """With the joint distortion as a function of the sum and of the number of replaced sites."""
    alone = {(s.name, o.scheme): o.distortion for s in priced.sites for o in s.options}

    def measured(chosen):
        found = sum(alone[key] for key in chosen.items())
        return found if len(chosen) == 1 else joint(found, len(chosen))

    return settle(priced, budget, Sensitivities(measured, seconds=1e9))


def test_the_drop_that_a_refusal_names_beside_a_size_is_kept():
    priced = model(*(site(name, 1.0) for name in "abc"))
    budget = Budget(size_ratio=4 / 32, max_drop=0.001)

    def joint(found, _):
        return 1.37 * found

    with pytest.raises(PlanError, match=r"max_drop=0.001 cannot be kept together") as refused:
        _settled(priced, budget, joint)
    raised = replace(budget, max_drop=_least(refused.value, "found is"))
    found = _settled(priced, raised, joint)
    assert found.joint <= raised.max_drop < 1.001 * found.joint


def test_the_drop_that_a_refusal_names_beside_schemes_by_name_is_kept():
    priced = model(site("a", fixed=3), site("b", fixed=3), site("c"))

    def joint(found, _):
        return 1.37 * found

    with pytest.raises(PlanError, match=r"max_drop=0.01 cannot be kept: .* not named") as refused:
        _settled(priced, Budget(max_drop=0.01), joint)
    assert "name other schemes" in str(refused.value)
    raised = Budget(max_drop=_least(refused.value, "it is"))
    found = _settled(priced, raised, joint)
    assert found.joint <= raised.max_drop < 1.001 * found.joint


def _least(refusal: PlanError, behind: str) -> float:
    (number,) = re.findall(rf"{behind} ([\d.e-]+)[,;]", str(refusal))
    return float(number)


def test_a_joint_distortion_of_nothing_lets_the_sum_grow():
    """Errors that cancel out altogether tell no ratio to the sum."""
    priced = model(*(site(name, 1.0) for name in "ab"))
    limit = 2 * 2.0**-16
    found = _settled(priced, Budget(max_drop=limit), lambda *_: 0.0)
    assert found.joint == 0
    assert schemes(found.model, found.chosen) == [TWO, TWO]
    # Beyond some errors they no longer cancel out: then the limit is found from there.
    found = _settled(priced, Budget(max_drop=limit), lambda alone, _: alone if alone > 0.01 else 0)
    assert found.joint <= limit
    assert schemes(found.model, found.chosen) == [EIGHT, EIGHT]


def test_a_sum_of_nothing_with_a_joint_distortion_is_left_dense():
    priced = model(*(site(name, 0.0) for name in "ab"))
    found = _settled(priced, Budget(max_drop=0.01), lambda *_: 0.5)
    assert found.joint <= 0.01


def test_a_joint_distortion_that_hardly_falls_with_the_sum_is_followed_down():
    sensitivities = dict(zip("abcdef", (1.0, 1.0, 1.0, 1.0, 1.0, 1e-4), strict=True))
    priced = model(*(site(name, value) for name, value in sensitivities.items()))
    found = _settled(priced, Budget(max_drop=0.01), lambda *_: 0.0105)
    assert found.joint <= 0.01
    assert schemes(found.model, found.chosen) != ["dense"] * 6


def test_outputs_of_named_schemes_that_are_not_finite_ask_for_others():
    priced = model(site("a", fixed=3), site("b", fixed=3), site("c"))
    with pytest.raises(PlanError, match="not finite any more; name others"):
        _settled(priced, Budget(max_drop=0.01), lambda *_: float("inf"))
