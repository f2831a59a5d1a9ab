"""Compensated rounding, the grids of levels, and how codes run in ONNX Runtime.

What holds for every structure is in test_structures.py.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import assert_close, one_node_model, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from undense.passes.errors import LoweringError, SchemeError
from undense.passes.linalg import compensate, damped, nearest_codes, relative_error
from undense.passes.scheme import parse_scheme
from undense.passes.stats import Stats
from undense.passes.structures.base import Structure
from undense.passes.structures.block_quantized import (
    BlockQuantized,
    group_count,
    round_activations,
)
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.levels import (
    IntegerLevels,
    TritLevels,
    fit_integer_levels,
    fit_trit_levels,
    trit_patterns,
)
from undense.passes.structures.trit_planes import TritPlanes, split_trits

SITE = "block.3.weight"
Matrix = NDArray[np.float64]

EVERY_STORAGE: tuple[BlockQuantized, ...] = (
    IntCodes(bits_=3),
    IntCodes(bits_=4),
    IntCodes(bits_=6),
    IntCodes(bits_=8),
    TritPlanes(planes=1),
    TritPlanes(planes=1, pack_="4bit"),
    TritPlanes(planes=2),
    TritPlanes(planes=3),
    TritPlanes(planes=2, tied=False),
    TritPlanes(planes=3, tied=False),
)


def correlated(size: int, seed: int = 0, *, loud: bool = False) -> Matrix:
    """A second moment with eigenvalues 1/i and, if `loud`, channels of very different size."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    scale = np.exp(rng.standard_normal(size)) if loud else np.ones(size)
    moment = (basis / np.arange(1, size + 1)) @ basis.T
    scaled: Matrix = moment * np.outer(scale, scale)
    return scaled


def gaussian(rows: int, columns: int, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def stats_with(moment: Matrix) -> Stats:
    return Stats(moment, np.zeros(len(moment)), 1 << 20)


# Compensated rounding


def textbook_gptq(
    weight: Matrix, moment: Matrix, levels: list[IntegerLevels], group_size: int
) -> NDArray[np.int16]:
    """GPTQ as published: through the Cholesky factor of the inverse, one column after the other."""
    order = np.argsort(-np.diagonal(moment), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    left, codes = weight[:, order].copy(), np.zeros(weight.shape, np.int16)
    for j, column in enumerate(order):
        codes[:, column], value = levels[column // group_size].nearest(left[:, j])
        error = (left[:, j] - value) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    return codes


@pytest.mark.parametrize("columns", [96, 100, 200])
def test_compensate_is_gptq(columns: int) -> None:
    weight, moment = gaussian(9, columns), damped(correlated(columns, loud=True))
    codes, levels = compensate(weight, moment, partial(fit_integer_levels, low=-4, high=4), 32)
    assert len(levels) == -(-columns // 32)
    np.testing.assert_array_equal(codes, textbook_gptq(weight, moment, levels, 32))


def test_without_correlation_compensation_rounds_to_the_nearest() -> None:
    weight, levels = gaussian(8, 96), partial(fit_integer_levels, low=-8, high=7)
    codes, _ = compensate(weight, np.eye(96), levels, 32)
    np.testing.assert_array_equal(codes, nearest_codes(weight, levels, 32)[0])


@pytest.mark.parametrize("loud", [False, True])
@pytest.mark.parametrize(
    "structure",
    [
        IntCodes(bits_=3),
        IntCodes(bits_=4),
        IntCodes(bits_=8),
        TritPlanes(planes=1),
        TritPlanes(planes=2),
        TritPlanes(planes=3),
        TritPlanes(planes=2, tied=False),
    ],
    ids=str,
)
def test_compensation_lowers_the_error_of_the_output(structure: Structure, loud: bool) -> None:
    moment = correlated(320, loud=loud)
    weight = gaussian(48, 320)
    free, compensated = (
        relative_error(
            weight, structure.dense(structure.fit(weight, stats, seed=0, site=SITE)), moment
        )
        for stats in (None, stats_with(moment))
    )
    # Measured: 0.65 to 0.72 of the data-free error, one plane included.
    assert compensated < 0.8 * free


# Levels


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("half", [4, 8, 128])
def test_the_whole_range_of_codes_is_used(half: int, sign: int) -> None:
    weights = sign * 0.25 * np.arange(-half, half)[None].astype(np.float64)
    levels = fit_integer_levels(weights, np.ones(2 * half), -half, half - 1)
    assert levels.step[0] == sign * 0.25
    codes, values = levels.nearest(weights.T)
    np.testing.assert_array_equal(codes.ravel(), np.arange(-half, half))
    np.testing.assert_array_equal(values, weights.T)


@pytest.mark.parametrize("planes", [1, 2, 3])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_nearest_is_the_nearest_of_all_sums_of_planes(planes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = rng.choice([0, 0.5, 1, 2.5, *rng.random(4)], (planes, 6))
    values = rng.standard_normal((11, 6)) * 2
    codes, nearest = TritLevels(scales).nearest(values)
    every = trit_patterns(planes).astype(float) @ scales  # [patterns, rows]
    best = np.abs(values[:, None] - every).min(axis=1)
    np.testing.assert_allclose(np.abs(values - nearest), best, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(every[codes, np.arange(6)], nearest)


@pytest.mark.parametrize(
    ("structure", "published"),
    [
        (TritPlanes(planes=1), 0.433),
        (TritPlanes(planes=2), 0.170),
        (TritPlanes(planes=3), 0.060),
        (TritPlanes(planes=1, tied=False), 0.433),
        (TritPlanes(planes=2, tied=False), 0.166),
        (IntCodes(bits_=3), 0.188),
        # The figure is that of a grid with a free zero point, which stores one more number a group.
        (IntCodes(bits_=4), 0.096 * 1.02),
    ],
    ids=str,
)
def test_error_on_gaussian_rows_is_that_of_the_literature(
    structure: Structure, published: float
) -> None:
    weight = gaussian(512, 128)
    factors = structure.fit(weight, None, seed=0, site=SITE)
    error = relative_error(weight, structure.dense(factors), None)
    # 65536 entries: the figure itself is known to about 1 / sqrt(65536), and given to 3 digits.
    assert 0.9 * published < error < 1.01 * published


def test_free_scales_beat_tied_ones_on_every_row() -> None:
    for planes in (2, 3):
        weights = np.random.default_rng(2).standard_t(5, (200, 64))
        high = (3**planes - 1) // 2
        tied = fit_integer_levels(weights, np.ones(64), -high, high).nearest(weights.T)[1]
        free = fit_trit_levels(weights, np.ones(64), planes).nearest(weights.T)[1]
        tied_error, free_error = (np.square(weights.T - fit).sum(axis=0) for fit in (tied, free))
        assert (free_error <= tied_error * (1 + 1e-5)).all()  # scales are rounded to float32
        assert free_error.sum() < 0.9 * tied_error.sum()


def test_scales_of_free_planes_fall_and_are_not_negative() -> None:
    structure = TritPlanes(planes=3, tied=False)
    scales = structure.fit(gaussian(12, 300), None, seed=0, site=SITE)["scales"].astype(float)
    assert scales.shape == (3, 12, 3)
    assert (np.diff(scales, axis=0) <= 0).all()
    assert (scales >= 0).all()


def test_the_published_fit_sees_no_data() -> None:
    weight, stats = gaussian(8, 128), stats_with(correlated(128))
    for structure in (TritPlanes(fit_="ptqtp"), TritPlanes(fit_="ptqtp", tied=False)):
        blind, given_data = (
            structure.fit(weight, given, seed=0, site=SITE) for given in (None, stats)
        )
        assert all(blind[name].tobytes() == given_data[name].tobytes() for name in blind)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_trits_of_tied_codes(planes: int) -> None:
    high = (3**planes - 1) // 2
    codes = np.arange(-high, high + 1, dtype=np.int8).reshape(1, -1)
    trits = split_trits(codes, planes)
    assert trits.shape == (planes, 1, 3**planes)
    assert set(trits.ravel().tolist()) <= {-1, 0, 1}
    weights = 3 ** np.arange(planes - 1, -1, -1)
    np.testing.assert_array_equal(np.tensordot(weights, trits.astype(int), 1), codes)


# Rounding of activations


def test_rounding_by_hand() -> None:
    x = np.array([[127, 0.5, 1.5, -2.5, 0, 0, -254, 1, 3]], np.float64)
    # Blocks of 4, 4 and 1: scales 1, 2 and 3/127; ties go to even.
    wanted = [127, 0, 2, -2, 0, 0, -254, 0, 127 * float(np.float32(3) / np.float32(127))]
    assert round_activations(x, 4).tolist() == [wanted]


def test_rounding_takes_what_is_odd() -> None:
    tiny = np.full((2, 40), 1e-42)  # 127 / max is infinite in float32
    for x in (np.zeros((3, 40)), tiny, np.zeros((0, 40)), np.zeros(40)):
        rounded = round_activations(x, 32)
        assert rounded.shape == x.shape
        assert not rounded.any()


@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("stored", EVERY_STORAGE, ids=str)
def test_engine_rounds_activations_as_the_reference_does(
    stored: BlockQuantized, group: int
) -> None:
    try:
        structure = dataclasses.replace(stored.with_activations("int8"), group=group)  # type: ignore[type-var]
    except SchemeError:
        assert group == 16
        return
    out_features, in_features = 24, 576
    weight = gaussian(out_features, in_features)
    factors = structure.fit(weight, None, seed=0, site=SITE)
    model = one_node_model(structure, factors, out_features, in_features)
    rng = np.random.default_rng(7)
    for rows in (1, 2, 5, 17):
        x = rng.standard_normal((rows, in_features)).astype(np.float32)
        x[:, ::50] *= 30
        y = run_onnx(model, x=x)
        reference = structure.reference(factors, x)
        # Sums within a block are integers and exact, so rounding grows with the blocks alone.
        assert_close(y, reference, reduction=group_count(in_features, structure.block))
        # Without the rounding the two differ by far more: the kernel is the int8 one.
        unrounded = x @ structure.dense(factors).T
        assert np.abs(y - unrounded).max() > 1e3 * np.abs(y - reference).max()


@pytest.mark.parametrize("stored", EVERY_STORAGE, ids=str)
def test_extreme_codes_and_activations_do_not_saturate(stored: BlockQuantized) -> None:
    structure = stored.with_activations("int8")
    assert structure.activations == "int8"
    rng = np.random.default_rng(8)
    factors = structure.fit(
        rng.choice([-1.0, 1.0], (6, 256)) + np.eye(6, 256), None, seed=0, site=SITE
    )
    model = one_node_model(structure, factors, 6, 256)
    for x in (np.ones((3, 256)), -np.ones((3, 256)), rng.choice([-1.0, 1.0], (3, 256))):
        wanted = structure.reference(factors, x)
        bound = 256 * np.abs(structure.dense(factors)).max() * np.finfo(np.float32).eps
        assert np.abs(run_onnx(model, x=x.astype(np.float32)) - wanted).max() <= 8 * bound


# The graph that runs


def optimized_nodes(model: onnx.ModelProto, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("form", ["fast", "portable"])
@pytest.mark.parametrize("stored", EVERY_STORAGE, ids=str)
def test_the_engine_sees_packed_products_alone(
    stored: BlockQuantized, form: Any, tmp_path: Path
) -> None:
    factors = stored.fit(gaussian(24, 200), None, seed=0, site=SITE)
    for leading in (("batch",), ("batch", "sequence")):
        model = one_node_model(stored, factors, 24, 200, form=form, leading=leading)
        nodes = optimized_nodes(model, tmp_path)
        packed = nodes.count("MatMulNBits")
        assert packed == (stored.macs(1, 1) if form == "portable" else len(stored.terms))
        assert nodes == ["MatMulNBits"] * packed + ["Sum"] * (packed > 1)


@pytest.mark.parametrize(
    ("structure", "bits_per_weight"),
    [
        (IntCodes(bits_=6, group=64), 8.5),
        (IntCodes(bits_=4, group=32), 5),
        (IntCodes(bits_=3, group=128), 4.25),
        (TritPlanes(planes=1), 2.25),
        (TritPlanes(planes=2), 4.25),
        (TritPlanes(planes=3), 6.25),
        (TritPlanes(planes=2, tied=False), 4.5),
        (TritPlanes(planes=3, tied=False), 6.75),
        (TritPlanes(planes=2, group=256), 4.125),
    ],
    ids=str,
)
def test_stored_bits(structure: Structure, bits_per_weight: float) -> None:
    assert structure.bits(48, 512) == 48 * 512 * bits_per_weight


def test_a_partial_group_is_stored_whole() -> None:
    assert IntCodes(bits_=4).bits(10, 576) == 10 * 5 * (128 * 4 + 32)


@pytest.mark.parametrize("structure", EVERY_STORAGE, ids=str)
def test_candidates_fill_their_groups_or_have_those_of_the_scheme_by_name(
    structure: Structure,
) -> None:
    for in_features, group in ((576, 64), (1536, 128), (96, 32), (100, 64)):
        options = structure.candidates(64, in_features)
        assert len(set(options)) == len(options) > 1
        groups = {option.group for option in options}  # type: ignore[attr-defined]
        assert {group, 128} <= groups <= {group, 32, 128}


# Options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int_codes{bits=5}", "bits is one of 3, 4, 6, 8"),
        ("int_codes{group=48}", "group is one of 16, 32, 64, 128, 256, not 48"),
        ("int_codes{group=512}", "not 512"),
        ("int_codes{fit=best}", "fit is one of compensated, nearest"),
        ("trit_planes{planes=4}", "planes is one of 1, 2, 3"),
        ("trit_planes{group=0}", "not 0"),
        ("trit_planes{activations=int4}", "activations is one of auto, float, int8"),
        ("trit_planes{pack=3bit}", "pack is one of 4bit, 2bit, base3"),
        ("trit_planes{pack=4bit,tied=false}", "pack=4bit holds up to two tied planes"),
        ("trit_planes{pack=4bit,planes=3}", "pack=4bit holds up to two tied planes"),
        ("trit_planes{planes=3,group=16}", "2-bit planes need a group of 32 or more, not 16"),
    ],
)
def test_options_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        parse_scheme(text)


@pytest.mark.parametrize(
    "text",
    [
        "int_codes",
        "int_codes{bits=4,group=32}",
        "int_codes{activations=int8,fit=nearest}",
        "trit_planes",
        "trit_planes{group=16}",
        "trit_planes{planes=1,pack=4bit}",
        "trit_planes{planes=3,group=64,tied=false,fit=ptqtp,pack=base3,activations=float}",
    ],
)
def test_scheme_texts_come_back(text: str) -> None:
    assert str(parse_scheme(text)) == text


def test_storage_has_a_default_for_each_kind_of_planes() -> None:
    assert TritPlanes(planes=2).storage == "4bit"
    assert TritPlanes(planes=1).storage == "2bit"
    assert TritPlanes(planes=3).storage == "2bit"
    assert TritPlanes(planes=2, tied=False).storage == "2bit"
    assert TritPlanes(planes=2, pack_="base3").storage == "base3"


def test_what_onnx_cannot_say_is_refused() -> None:
    with pytest.raises(LoweringError, match="needs opset 21 and the model has 20"):
        TritPlanes().function("portable", 20)
    with pytest.raises(LoweringError, match="needs opset 13 and the model has 11"):
        IntCodes().gather_function("fast", 11)
    with pytest.raises(LoweringError, match="cannot gather rows of 4-bit"):
        IntCodes(bits_=4).gather_function("portable", 21)
