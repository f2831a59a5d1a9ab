"""What options of low rank and Monarch mean for a shape, and how they are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from structure_cases import stats_of, weight_of
from undense.passes.errors import FitError, SchemeError
from undense.passes.linalg import fit_moment, project_low_rank, relative_error
from undense.passes.scheme import parse_scheme
from undense.passes.stats import Stats
from undense.passes.structures.base import Structure
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.monarch import Monarch

SITE = "block.3.weight"


@pytest.mark.parametrize(
    ("text", "shape", "resolved"),
    [
        ("low_rank", (64, 64), "low_rank{rank=16}"),
        ("low_rank{ratio=1}", (64, 192), "low_rank{rank=48}"),
        ("low_rank{ratio=0.01}", (8, 8), "low_rank{rank=1}"),
        ("low_rank{rank=8}", (8, 9), "low_rank{rank=8}"),
        ("low_rank{ratio=1,factor_bits=8}", (64, 192), "low_rank{rank=48,factor_bits=8}"),
        ("low_rank{rank=8,factor_bits=32}", (8, 9), "low_rank{rank=8}"),
        ("monarch", (576, 576), "monarch{blocks=4,rank=36}"),
        ("monarch{ratio=0.25}", (1536, 576), "monarch{blocks=4,rank=26}"),
        ("monarch{rank=2}", (64, 64), "monarch{blocks=2,rank=2}"),
        ("monarch{ratio=0.5}", (90, 60), "monarch{blocks=2,rank=9}"),
        ("monarch{ratio=0.5}", (15, 45), "monarch{blocks=3,rank=1}"),
        ("monarch{ratio=0.01}", (32, 32), "monarch{blocks=2,rank=1}"),
        ("monarch{blocks=8,rank=2}", (64, 32), "monarch{blocks=8,rank=2}"),
        ("monarch{blocks=8,ratio=0.5}", (64, 64), "monarch{blocks=8,rank=2}"),
        ("monarch{in_blocks=8,out_blocks=4,rank=2}", (12, 64), None),
        ("monarch{in_blocks=4,out_blocks=4,rank=2}", (64, 64), "monarch{blocks=4,rank=2}"),
        ("monarch{ratio=0.25,fit=projection}", (64, 64), "monarch{blocks=2,rank=4,fit=projection}"),
    ],
)
def test_relative_options_become_absolute(
    text: str, shape: tuple[int, int], resolved: str | None
) -> None:
    structure = parse_scheme(text)
    assert isinstance(structure, Structure)
    assert str(structure.resolve(*shape, site=SITE)) == (resolved or text)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("cls", [LowRank, Monarch])
def test_ratio_is_kept(cls: type[LowRank] | type[Monarch], ratio: float) -> None:
    dense = 384 * 1536
    structure = cls(ratio=ratio).resolve(384, 1536, site=SITE)
    assert structure.rank is not None
    more = dataclasses.replace(structure, rank=structure.rank + 1)
    assert structure.macs(384, 1536) <= ratio * dense < more.macs(384, 1536)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low_rank{ratio=0.5,rank=3}", "ratio and rank exclude each other"),
        ("low_rank{ratio=0}", "ratio is above 0 and at most 1, not 0.0"),
        ("low_rank{ratio=1.5}", "ratio is above 0 and at most 1, not 1.5"),
        ("low_rank{ratio=nan}", "ratio is above 0 and at most 1, not nan"),
        ("low_rank{rank=0}", "rank is at least 1, not 0"),
        ("low_rank{factor_bits=16}", "factor_bits is one of 8, 32, not '16'"),
        ("monarch{ratio=0.5,rank=3}", "ratio and rank exclude each other"),
        ("monarch{ratio=-1}", "ratio is above 0 and at most 1, not -1.0"),
        ("monarch{blocks=0}", "blocks is at least 1, not 0"),
        ("monarch{in_blocks=0,out_blocks=2}", "in_blocks is at least 1, not 0"),
        ("monarch{in_blocks=4}", "in_blocks and out_blocks go together"),
        ("monarch{blocks=4,in_blocks=4,out_blocks=2}", "blocks stands for in_blocks and out_bl"),
        ("monarch{fit=magic}", "fit is one of block_svd, projection, not 'magic'"),
    ],
)
def test_contradictory_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(SchemeError) as raised:
        parse_scheme(text)
    assert message in str(raised.value)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        (
            "low_rank{rank=9}",
            (8, 20),
            "rank 9 is more than a 8×20 weight has; choose a rank up to 8 or a ratio",
        ),
        (
            "monarch{blocks=4,rank=2}",
            (64, 90),
            "in_features 90 does not divide into 4 blocks; choose 2 or 3 or 5 or 6 blocks",
        ),
        (
            "monarch{in_blocks=2,out_blocks=7,rank=2}",
            (64, 90),
            "out_features 64 does not divide into 7 blocks; choose 2 or 4 or 8 or 16 blocks",
        ),
        ("monarch{blocks=128,rank=2}", (64, 64), "choose 32 or 64 blocks"),
        (
            "monarch{ratio=0.5}",
            (64, 81),
            "no number of blocks divides both out_features 64 and in_features 81",
        ),
        (
            "monarch{blocks=8,rank=5}",
            (32, 64),
            "rank 5 is more than a block of 4×8 has; choose a rank up to 4",
        ),
    ],
)
def test_shape_that_does_not_admit_the_options_is_refused(
    text: str, shape: tuple[int, int], message: str
) -> None:
    structure = parse_scheme(text)
    assert isinstance(structure, Structure)
    for call in (
        lambda: structure.resolve(*shape, site=SITE),
        lambda: structure.fit(np.ones(shape), None, seed=0, site=SITE),
    ):
        with pytest.raises(FitError) as raised:
            call()
        assert str(raised.value).startswith(f"{SITE}: ")
        assert message in str(raised.value)


@pytest.mark.parametrize("structure", [LowRank(ratio=0.5), Monarch(ratio=0.5), Monarch(rank=2)])
def test_size_is_asked_of_resolved_structures_only(structure: Structure) -> None:
    with pytest.raises(SchemeError, match="resolve it for a shape first"):
        structure.bits(64, 64)


def test_coded_factors_are_a_quarter_of_the_bits_and_as_good() -> None:
    shape = (96, 128)
    weight, stats = weight_of(shape), stats_of(shape[1])
    errors, bits = {}, {}
    for factor_bits in (32, 8):
        structure = LowRank(rank=32, factor_bits=factor_bits)
        factors = structure.fit(weight, stats, seed=0, site=SITE)
        moment = stats.second_moment
        errors[factor_bits] = relative_error(weight, structure.dense(factors), moment)
        bits[factor_bits] = structure.bits(*shape)
    assert errors[8] < 1.01 * errors[32]
    # A scale for each 128 columns of `down`, and for each 32 of `up`.
    assert bits[8] == bits[32] // 4 + 32 * (32 * 1 + 96 * 1)


def test_the_second_factor_makes_up_for_the_codes_of_the_first() -> None:
    shape, rank = (96, 128), 96
    weight, stats = weight_of(shape).astype(np.float64), stats_of(shape[1])
    moment = fit_moment(stats, shape[1], SITE)
    structure = LowRank(rank=rank, factor_bits=8)
    coded = structure.coded
    assert coded is not None
    down, up = project_low_rank(weight, moment, rank)
    own = coded.parts(shape[1])
    apart = [
        part.dense(part.fit(factor, None, seed=0, site=SITE))
        for part, factor in zip(own.values(), (down.T, up.T), strict=True)
    ]
    factors = structure.fit(weight, stats, seed=0, site=SITE)
    found = relative_error(weight, structure.dense(factors), moment)
    assert found < 0.9 * relative_error(weight, apart[1] @ apart[0], moment)


def test_block_svd_beats_the_projection_on_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((96, 96)) / np.sqrt(np.arange(1, 97))[:, None]
    rows = rng.standard_normal((1024, 96)) @ mixing
    stats = Stats(rows.T @ rows / len(rows), rows.mean(axis=0), len(rows))
    weight = rng.standard_normal((64, 96))
    errors = {}
    for fit in ("block_svd", "projection"):
        structure = Monarch(blocks=4, rank=6, fit_=fit)
        factors = structure.fit(weight, stats, seed=0, site=SITE)
        errors[fit] = relative_error(weight, structure.dense(factors), stats.second_moment)
    assert errors["block_svd"] < 0.7 * errors["projection"]
    without = Monarch(blocks=4, rank=6).fit(weight, None, seed=0, site=SITE)
    for name, factor in without.items():
        np.testing.assert_array_equal(factor, factors[name])
