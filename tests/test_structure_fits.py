"""The contract of every fit: repeatable, better with room and data, defined on bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, one_node_model, run_onnx
from numpy.typing import NDArray
from structure_cases import (
    CASES,
    SHAPES,
    SITE,
    Matrix,
    every_fit,
    every_kind,
    every_structure,
    fits_best,
    fitted,
    resolved,
    stats_of,
    variants,
    weight_of,
)
from undense.passes.errors import FitError
from undense.passes.linalg import fit_moment, relative_error
from undense.passes.stats import Stats
from undense.passes.structures.base import Factors, Structure
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.monarch import Monarch

ROOM_FIELDS = {"rank", "planes", "bits_"}


def error_of(structure: Structure, weight: Matrix, factors: Factors) -> float:
    return relative_error(weight, structure.dense(factors), None)


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@every_fit
def test_fit_is_repeatable_and_changes_nothing(
    structure: Structure, shape: tuple[int, int], data: bool
) -> None:
    weight = weight_of(shape)
    stats = stats_of(shape[1]) if data else None
    weight.flags.writeable = False
    if stats is not None:
        stats.second_moment.flags.writeable = False
        stats.mean.flags.writeable = False
    first = structure.fit(weight, stats, seed=0, site=SITE)
    # Equal numbers in another memory layout and in a wider type are the same weight.
    again = structure.fit(np.asfortranarray(weight), stats, seed=0, site=SITE)
    wider = structure.fit(weight.astype(np.float64), stats, seed=0, site=SITE)
    for other in (again, wider):
        assert {name: factor.tobytes() for name, factor in other.items()} == {
            name: factor.tobytes() for name, factor in first.items()
        }
    for factor in first.values():
        assert factor.dtype in (np.float32, np.float16, np.int8)
        assert factor.flags.c_contiguous


@pytest.mark.parametrize(
    ("structure", "shape"), [case for case in CASES if fits_best(case.values[0])]
)
def test_statistics_do_not_make_the_output_worse(
    structure: Structure, shape: tuple[int, int]
) -> None:
    weight, moment = weight_of(shape), stats_of(shape[1]).second_moment
    free, calibrated = (
        relative_error(weight, structure.dense(fitted(structure, shape, data=data)), moment)
        for data in (False, True)
    )
    assert calibrated <= free * (1 + 8 * np.finfo(np.float32).eps)


@every_kind
def test_error_does_not_grow_with_room(cls: type[Structure]) -> None:
    shape = SHAPES[0]
    weight = weight_of(shape)
    families: dict[tuple[Any, ...], dict[int, float]] = {}
    for structure in resolved(cls, shape):
        every = dataclasses.fields(structure)  # type: ignore[arg-type]
        fields: dict[str, Any] = {field.name: getattr(structure, field.name) for field in every}
        for name in fields.keys() & ROOM_FIELDS:
            family = (name, *((key, value) for key, value in fields.items() if key != name))
            error = error_of(structure, weight, fitted(structure, shape))
            families.setdefault(family, {})[fields[name]] = error
    compared = [errors for errors in families.values() if len(errors) > 1]
    assert compared, "no two options differ in their room alone"
    for errors in compared:
        by_room = [errors[room] for room in sorted(errors)]
        assert by_room == sorted(by_room, reverse=True), errors


@pytest.mark.parametrize("data", [False, True], ids=["data-free", "calibrated"])
@pytest.mark.parametrize(
    ("structure", "shape"),
    [
        (LowRank(rank=7), (7, 20)),
        (LowRank(rank=7), (20, 7)),
        (LowRank(rank=1), (1, 1)),
        (Monarch(blocks=4, rank=3), (12, 20)),
        (Monarch(in_blocks=3, out_blocks=2, rank=3), (10, 9)),
        (Monarch(in_blocks=1, out_blocks=1, rank=9), (10, 9)),
        (Monarch(blocks=1, rank=1), (1, 1)),
    ],
    ids=str,
)
def test_full_rank_is_exact(structure: Structure, shape: tuple[int, int], data: bool) -> None:
    weight = weight_of(shape)
    stats = stats_of(shape[1]) if data else None
    factors = structure.fit(weight, stats, seed=0, site=SITE)
    assert_close(structure.dense(factors), weight, reduction=max(shape), dtype=np.float32)


# Degenerate input: a defined result, or an error that names the layer

BAD_WEIGHTS = {
    "nan": np.where(np.eye(48, 128) > 0, np.nan, 1),
    "infinite": np.where(np.eye(48, 128) > 0, np.inf, 1),
    "minus infinite": np.where(np.eye(48, 128) > 0, -np.inf, 1),
    "no rows": np.zeros((0, 128)),
    "no columns": np.zeros((48, 0)),
    "vector": np.ones(128),
    "scalar": np.ones(()),
    "kernel": np.ones((4, 4, 3, 3)),
}


@pytest.mark.parametrize("weight", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
@every_structure
def test_what_is_no_weight_is_refused_by_name(
    structure: Structure, shape: tuple[int, int], weight: NDArray[np.float64]
) -> None:
    with pytest.raises(FitError, match=SITE):
        structure.fit(weight.astype(np.float32), None, seed=0, site=SITE)


@every_structure
def test_statistics_that_do_not_fit_are_refused_by_name(
    structure: Structure, shape: tuple[int, int]
) -> None:
    weight, good = weight_of(shape), stats_of(shape[1])
    broken = Stats(np.full_like(good.second_moment, np.nan), good.mean, good.tokens)
    for stats in (stats_of(shape[1] - 1), broken):
        with pytest.raises(FitError, match=SITE):
            structure.fit(weight, stats, seed=0, site=SITE)


def odd_weights(shape: tuple[int, int]) -> dict[str, Matrix]:
    weight = weight_of(shape)
    no_rows, no_columns, loud, flat = (weight.copy() for _ in range(4))
    no_rows[::3] = 0
    no_columns[:, : shape[1] // 2] = 0
    loud[:, 5] *= 1000
    flat[:, : shape[1] // 2] = 0.75
    return {
        "zero": np.zeros_like(weight),
        "zero rows": no_rows,
        "zero groups": no_columns,
        "loud column": loud,
        "constant groups": flat,
        "tiny": weight * np.float32(1e-15),
        "huge": weight * np.float32(1e15),
        "all equal": np.full_like(weight, -0.75),
    }


def odd_statistics(in_features: int) -> dict[str, Stats | None]:
    good = stats_of(in_features)
    alive = np.ones(in_features)
    alive[::4] = 0
    scale = np.ones(in_features)
    scale[3] = 1000
    return {
        "none": None,
        "few tokens": stats_of(in_features, tokens=3),
        "dead channels": Stats(good.second_moment * np.outer(alive, alive), good.mean, good.tokens),
        "all dead": Stats(np.zeros_like(good.second_moment), np.zeros(in_features), good.tokens),
        "outlier channel": Stats(
            good.second_moment * np.outer(scale, scale), good.mean * scale, good.tokens
        ),
        "float32": Stats(
            good.second_moment.astype(np.float32), good.mean.astype(np.float32), good.tokens
        ),
    }


@pytest.mark.parametrize("statistics", odd_statistics(128).keys())
@every_fit
def test_degenerate_input_gives_a_sound_result(
    structure: Structure, shape: tuple[int, int], statistics: str
) -> None:
    stats = odd_statistics(shape[1])[statistics]
    moment = fit_moment(stats, shape[1], SITE)
    for name, weight in odd_weights(shape).items():
        factors = structure.fit(weight, stats, seed=0, site=SITE)
        assert all(np.isfinite(factor).all() for factor in factors.values()), name
        # No fit may be worse than leaving the layer out.
        assert relative_error(weight, structure.dense(factors), moment) <= 1, name
        zero_rows = structure.dense(factors)[~weight.any(axis=1)]
        bound = 8 * shape[1] * np.finfo(np.float32).eps * np.abs(weight).max()
        assert (np.abs(zero_rows) <= bound).all(), name


@every_structure
def test_engine_runs_degenerate_weights(structure: Structure, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(6).standard_normal((3, shape[1])).astype(np.float32)
    for weight in odd_weights(shape).values():
        factors = structure.fit(weight, None, seed=0, site=SITE)
        y = run_onnx(one_node_model(structure, factors, *shape), x=x)
        assert_close(y, structure.reference(factors, x), reduction=shape[1])


@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (2, 3), (64, 1), (1, 50)], ids=str)
@every_kind
def test_awkward_shapes_fit_or_are_refused_by_name(
    cls: type[Structure], shape: tuple[int, int]
) -> None:
    for structure in variants(cls):
        chosen, message = structure, ""
        try:
            chosen = structure.resolve(*shape, site=SITE)
        except FitError as error:
            message = str(error)
        if message:
            assert SITE in message
            assert any(str(size) in message for size in shape)
            continue
        factors = chosen.fit(weight_of(shape), stats_of(shape[1]), seed=0, site=SITE)
        assert np.isfinite(chosen.dense(factors)).all()
        assert chosen.dense(factors).shape == shape
    for candidate in cls.candidates(*shape):
        assert candidate.resolve(*shape, site=SITE) == candidate
