"""What a planner is offered for a shape: all of it can be fitted, stored and said in a plan."""

from __future__ import annotations

import numpy as np
import pytest
from structure_cases import SITE, stats_of, weight_of
from undense.passes.linalg import fit_moment, relative_error
from undense.passes.plan import Choice, Plan
from undense.passes.scheme import parse_scheme
from undense.passes.structures import candidates, structures
from undense.passes.structures.base import DENSE_BITS
from undense.passes.structures.residual import Residual

SHAPES = [(48, 128), (7, 200), (60, 36), (33, 48), (1, 64), (3, 1), (1, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_shape
def test_each_is_resolved_smaller_and_only_there_once(shape: tuple[int, int]) -> None:
    found = candidates(*shape)
    assert len(set(map(str, found))) == len(set(found)) == len(found)
    for structure in found:
        assert structure.resolve(*shape, site=SITE) == structure
        assert structure.bits(*shape) < DENSE_BITS * shape[0] * shape[1]


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@every_shape
def test_each_can_be_fitted_and_stored(shape: tuple[int, int], data: bool) -> None:
    weight, stats = weight_of(shape), stats_of(shape[1]) if data else None
    moment = fit_moment(stats, shape[1], SITE)
    for structure in candidates(*shape):
        factors = structure.fit(weight, stats, seed=0, site=SITE)
        assert relative_error(weight, structure.dense(factors), moment) < 1, structure
        stored = sum(tensor.nbytes for tensor in structure.pack(factors, "fast").values())
        assert 8 * stored == structure.bits(*shape), structure


@every_shape
def test_a_plan_can_hold_each(shape: tuple[int, int]) -> None:
    plan = Plan(
        tuple(
            Choice(f"layer.{number}", shape[1], shape[0], str(structure))
            for number, structure in enumerate(candidates(*shape))
        )
    )
    assert Plan.from_json(plan.to_json()) == plan


def test_all_that_is_asked_for_is_offered() -> None:
    found = {str(structure) for structure in candidates(768, 1024)}
    codes = {
        *("int_codes", "int_codes{bits=4}", "int_codes{bits=3}", "int_codes{bits=4,group=32}"),
        *("trit_planes{planes=1}", "trit_planes", "trit_planes{planes=3}"),
    }
    codes = {str(parse_scheme(text)) for text in codes}
    assert codes <= found
    assert {f"{text}+residual{{rank={rank}}}" for text in codes for rank in (16, 32)} <= found
    ranks = {np.floor(ratio * 768 * 1024 / 1792 / 16) * 16 for ratio in (0.25, 0.5, 0.75)}
    for rank in ranks:
        assert {
            f"low_rank{{rank={rank:.0f}}}",
            f"low_rank{{rank={rank:.0f},factor_bits=8}}",
        } <= found
    assert {structure.kind for structure in candidates(768, 1024)} == structures().keys()


def test_what_an_embedding_can_take_is_among_them() -> None:
    gathered = [structure for structure in candidates(1000, 96) if structure.gathers]
    assert {structure.kind for structure in gathered} == {"int_codes"}


def test_what_is_as_large_as_the_weight_is_left_out() -> None:
    ranks = {option.rank for option in candidates(33, 48) if isinstance(option, Residual)}
    assert ranks == {16}
    assert candidates(1, 1) == []
