"""The primitives of fitting: optimal where theory says so, monotone where it only promises that."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from undense.passes.errors import FitError
from undense.passes.linalg import (
    block_svd,
    check_weight,
    damped,
    fit_moment,
    monarch_product,
    monarch_projection,
    project_low_rank,
    relative_error,
    square_root,
)
from undense.passes.stats import Stats

Matrix = NDArray[np.float64]
EPS = np.finfo(np.float64).eps

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)
property_test = settings(max_examples=40, deadline=None)


def matrix(seed: int, *shape: int, rank: int | None = None) -> Matrix:
    """Gaussian, of lower rank if told so."""
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.standard_normal(shape)
    return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))


def moment(seed: int, size: int) -> Matrix:
    """A positive definite second moment with channels of very different strength."""
    rows = matrix(seed, 3 * size, size) * np.logspace(0, -1, size)
    rows[:, -1] += rows[:, 0]
    return damped(rows.T @ rows / len(rows))


def loss(error: Matrix, second_moment: Matrix | None) -> float:
    return float(np.vdot(error if second_moment is None else error @ second_moment, error))


# Low rank


@given(sizes, sizes, sizes, seeds, st.booleans(), st.booleans())
@property_test
def test_projection_meets_eckart_young(
    rows: int, columns: int, rank: int, seed: int, weighted: bool, deficient: bool
) -> None:
    full = min(rows, columns)
    rank = min(rank, full)
    target = matrix(seed, rows, columns, rank=max(1, full // 2) if deficient else None)
    second_moment = moment(seed + 1, columns) if weighted else None
    down, up = project_low_rank(target, second_moment, rank)
    assert (down.shape, up.shape) == ((columns, rank), (rank, rows))
    assert_close(up @ up.T, np.eye(rank), reduction=rows, dtype=np.float64)
    root = np.eye(columns) if second_moment is None else np.linalg.cholesky(second_moment)
    spectrum = np.linalg.svd(target @ root, compute_uv=False)
    tail = np.sum(spectrum[rank:] ** 2)
    # Squares, since the projection comes from the Gram matrix of the target.
    bound = 64 * (rows + columns) * EPS * spectrum[0] ** 2
    assert abs(loss(target - (down @ up).T, second_moment) - tail) <= bound


@given(sizes, sizes, sizes, seeds)
@property_test
def test_no_nudge_of_the_factors_lowers_the_error(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    rank = min(rank, rows, columns)
    target, second_moment = matrix(seed, rows, columns), moment(seed + 1, columns)
    down, up = project_low_rank(target, second_moment, rank)
    least = loss(target - (down @ up).T, second_moment)
    rng = np.random.default_rng(seed + 2)
    for size in (1e-4, 1e-2, 1.0):
        nudged = (down + size * rng.standard_normal(down.shape)) @ (
            up + size * rng.standard_normal(up.shape)
        )
        bound = 64 * (rows + columns) * EPS * loss(target, second_moment)
        assert loss(target - nudged.T, second_moment) >= least - bound


def test_projection_of_a_batch_is_that_of_its_members() -> None:
    targets = np.stack([matrix(seed, 9, 5) for seed in range(6)]).reshape(2, 3, 9, 5)
    moments = np.stack([moment(seed, 5) for seed in range(2)])[:, None]
    down, up = project_low_rank(targets, moments, 2)
    for i in range(2):
        for j in range(3):
            one_down, one_up = project_low_rank(targets[i, j], moments[i, 0], 2)
            assert_close(down[i, j] @ up[i, j], one_down @ one_up, reduction=90, dtype=np.float64)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_projection_of_zero_is_zero(shape: tuple[int, int]) -> None:
    down, up = project_low_rank(np.zeros(shape), moment(0, shape[1]), 3)
    np.testing.assert_array_equal(down @ up, 0)
    assert np.isfinite(up).all()


# Monarch


@st.composite
def blocked(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """in_blocks, out_blocks, sizes of an input and an output block, rank."""
    in_blocks, out_blocks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    in_size, out_size = (
        draw(st.integers(1, 12 // in_blocks)),
        draw(st.integers(1, 12 // out_blocks)),
    )
    return in_blocks, out_blocks, in_size, out_size, draw(st.integers(1, min(in_size, out_size)))


def block_of(weight: Matrix, k: int, r: int, out_size: int, in_size: int) -> Matrix:
    return weight[k * out_size : (k + 1) * out_size, r * in_size : (r + 1) * in_size]


@given(blocked(), seeds)
@property_test
def test_two_block_products_are_the_dense_matrix(
    layout: tuple[int, int, int, int, int], seed: int
) -> None:
    in_blocks, out_blocks, in_size, out_size, rank = layout
    first = matrix(seed, in_blocks, in_size, out_blocks * rank)
    second = matrix(seed + 1, out_blocks, in_blocks * rank, out_size)
    dense = monarch_product(first, second)
    x = matrix(seed + 2, 3, in_blocks * in_size)
    hidden = np.einsum("brs,rsh->brh", x.reshape(3, in_blocks, in_size), first)
    hidden = hidden.reshape(3, in_blocks, out_blocks, rank)
    y = np.einsum("brkt,krtp->bkp", hidden, second.reshape(out_blocks, in_blocks, rank, out_size))
    assert_close(x @ dense.T, y.reshape(3, -1), reduction=200, dtype=np.float64)
    singular = np.linalg.matrix_rank(block_of(dense, out_blocks - 1, 0, out_size, in_size))
    assert singular <= rank


@given(blocked(), seeds)
@property_test
def test_projection_is_the_truncated_svd_of_each_block(
    layout: tuple[int, int, int, int, int], seed: int
) -> None:
    in_blocks, out_blocks, in_size, out_size, rank = layout
    weight = matrix(seed, out_blocks * out_size, in_blocks * in_size)
    first, second = monarch_projection(weight, in_blocks, out_blocks, rank)
    assert first.shape == (in_blocks, in_size, out_blocks * rank)
    assert second.shape == (out_blocks, in_blocks * rank, out_size)
    tails = 0.0
    for k in range(out_blocks):
        for r in range(in_blocks):
            block = block_of(weight, k, r, out_size, in_size)
            tails += np.sum(np.linalg.svd(block, compute_uv=False)[rank:] ** 2)
    error = weight - monarch_product(first, second)
    assert abs(loss(error, None) - tails) <= 64 * 24 * EPS * loss(weight, None)


@given(blocked(), seeds)
@property_test
def test_each_sweep_lowers_the_error(layout: tuple[int, int, int, int, int], seed: int) -> None:
    in_blocks, out_blocks, in_size, out_size, rank = layout
    weight = matrix(seed, out_blocks * out_size, in_blocks * in_size)
    second_moment = moment(seed + 1, weight.shape[1])
    projection = monarch_product(*monarch_projection(weight, in_blocks, out_blocks, rank))
    errors = [loss(weight - projection, second_moment)]
    for sweeps in range(5):
        factors = block_svd(weight, second_moment, in_blocks, out_blocks, rank, sweeps)
        errors.append(loss(weight - monarch_product(*factors), second_moment))
    bound = 64 * 24 * EPS * loss(weight, second_moment)
    assert all(later <= earlier + bound for earlier, later in pairwise(errors))


def test_block_svd_leaves_nothing_to_gain_in_the_second_factor() -> None:
    weight, second_moment = matrix(0, 8, 12), moment(1, 12)
    first, second = block_svd(weight, second_moment, 3, 2, 2, 1)
    error = weight - monarch_product(first, second)
    for k in range(2):
        features = np.zeros((12, 6))
        for r in range(3):
            block = first[r].reshape(4, 2, 2)[:, k]
            features[4 * r : 4 * r + 4, 2 * r : 2 * r + 2] = block
        # The gradient by w2[k]; the ridge of the solver is 1e-10.
        gradient = features.T @ second_moment @ error[4 * k : 4 * k + 4].T
        scale = np.linalg.norm(features.T @ second_moment) * np.linalg.norm(weight)
        assert np.abs(gradient).max() <= 1e-10 * scale


def test_block_svd_of_one_block_is_the_low_rank_optimum() -> None:
    weight, second_moment = matrix(0, 9, 7), moment(1, 7)
    down, up = project_low_rank(weight, second_moment, 3)
    factors = block_svd(weight, second_moment, 1, 1, 3, 2)
    assert_close(monarch_product(*factors), (down @ up).T, reduction=63, dtype=np.float64)


def test_block_svd_is_far_better_than_the_projection_on_correlated_inputs() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((64, 64)) / np.sqrt(np.arange(1, 65))[:, None]
    rows = rng.standard_normal((1024, 64)) @ mixing
    second_moment = damped(rows.T @ rows / len(rows))
    weight = rng.standard_normal((48, 64))
    projection, fitted = (
        relative_error(weight, monarch_product(*factors), second_moment)
        for factors in (
            monarch_projection(weight, 4, 4, 4),
            block_svd(weight, second_moment, 4, 4, 4, 4),
        )
    )
    assert fitted < 0.7 * projection


def test_block_svd_is_exact_for_a_monarch_matrix() -> None:
    weight = monarch_product(matrix(0, 3, 5, 8), matrix(1, 4, 6, 4))
    factors = block_svd(weight, moment(2, 15), 3, 4, 2, 3)
    assert_close(monarch_product(*factors), weight, reduction=15 * 16, dtype=np.float64)


# Statistics and errors


@given(sizes, seeds, st.booleans())
@property_test
def test_square_root_squares_to_the_moment(size: int, seed: int, deficient: bool) -> None:
    rows = matrix(seed, max(1, size // 2) if deficient else 2 * size, size)
    second_moment = rows.T @ rows
    root = square_root(second_moment)
    # Eigenvalues below 1e-10 of the largest are raised to that.
    bound = (1e-10 + 64 * size * EPS) * np.linalg.norm(second_moment, 2) * size
    assert np.abs(root @ root.T - second_moment).max() <= bound


def test_damping_is_relative_to_the_mean_of_the_diagonal() -> None:
    second_moment = np.diag([1.0, 3.0])
    np.testing.assert_array_equal(damped(second_moment, 0.5), np.diag([2.0, 4.0]))
    np.testing.assert_array_equal(damped(np.zeros((3, 3))), np.eye(3))
    batch = damped(np.stack([second_moment, np.zeros((2, 2))]), 0.5)
    np.testing.assert_array_equal(batch, np.stack([np.diag([2.0, 4.0]), np.eye(2)]))


@pytest.mark.parametrize(("tokens", "damping"), [(7, 0.1), (8, 0.01), (800, 0.01)])
def test_few_tokens_are_damped_more(tokens: int, damping: float) -> None:
    stats = Stats(np.eye(4), np.zeros(4), tokens)
    moment_ = fit_moment(stats, 4, "a.weight")
    assert moment_ is not None
    np.testing.assert_allclose(np.diagonal(moment_), 1 + damping, rtol=EPS)
    assert fit_moment(None, 4, "a.weight") is None


def test_statistics_of_another_size_are_refused() -> None:
    stats = Stats(np.eye(4), np.zeros(4), 100)
    with pytest.raises(FitError, match=r"a\.weight: the statistics are of 4 features.*of 5"):
        fit_moment(stats, 5, "a.weight")


def test_relative_error_of_nothing_is_zero() -> None:
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    assert relative_error(zero, zero, None) == 0
    assert relative_error(zero, one, None) == np.inf
    assert relative_error(one, zero, None) == 1
    assert relative_error(one, zero, np.zeros((3, 3))) == 0
    assert relative_error(one, one, np.eye(3)) == 0


@given(sizes, sizes, seeds)
@property_test
def test_relative_error_is_that_of_the_outputs(rows: int, columns: int, seed: int) -> None:
    weight, other = matrix(seed, rows, columns), matrix(seed + 1, rows, columns)
    x = matrix(seed + 2, 4 * columns, columns)
    error = np.linalg.norm(x @ (weight - other).T) / np.linalg.norm(x @ weight.T)
    found = relative_error(weight, other, x.T @ x)
    assert_close(found, error, reduction=8 * rows * columns, dtype=np.float64)


@pytest.mark.parametrize(
    ("weight", "cause"),
    [
        (np.full((2, 2), np.nan), "4 of 4 weights are NaN or infinite"),
        (np.array([[1.0, np.inf]]), "1 of 2 weights"),
        (np.zeros((0, 3)), "0×3"),
        (np.zeros(3), "a weight of shape 3 is no matrix"),
        (np.zeros(()), "scalar"),
    ],
)
def test_what_is_no_weight_is_refused(weight: NDArray[Any], cause: str) -> None:
    with pytest.raises(FitError, match=r"^a\.weight: ") as raised:
        check_weight(weight, "a.weight")
    assert cause in str(raised.value)
    assert "keep this layer dense" in raised.value.remedy


def test_checked_weight_is_a_copy() -> None:
    weight = np.asfortranarray(np.ones((2, 3), np.float16))
    checked = check_weight(weight, "a.weight")
    assert checked.dtype == np.float64
    assert checked.flags.c_contiguous
    assert not np.shares_memory(weight, checked)
    assert not np.shares_memory(checked, check_weight(checked, "a.weight"))
