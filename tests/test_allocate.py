"""Allocation is exact: against brute force on small cases, and within its limits on all."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from undense.passes import allocate as allocation
from undense.passes.allocate import Impossible, Limit, allocate, lower_hull, total
from undense.passes.errors import PlanError


def _brute_force(aim, limits):
    choices = itertools.product(*(range(len(row)) for row in aim))
    possible = [
        choice
        for choice in choices
        if all(total(limit.costs, choice) <= limit.most * (1 + 1e-9) for limit in limits)
    ]
    return min((total(aim, choice) for choice in possible), default=None)


@st.composite
def problems(draw):
    """A few sites with a few options each, of small numbers, and up to three limits."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    numbers = st.integers(0, 20).map(float)

    def table():
        return [[draw(numbers) for _ in range(count)] for count in counts]

    limits = [
        Limit(f"limit {number}", table(), draw(st.integers(0, 60)))
        for number in range(draw(st.integers(0, 3)))
    ]
    return table(), limits


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_choice_is_the_best_of_all(problem):
    aim, limits = problem
    best = _brute_force(aim, limits)
    if best is None:
        with pytest.raises(Impossible) as caught:
            allocate(aim, limits)
        named = next(limit for limit in limits if limit.name == caught.value.name)
        assert caught.value.least > named.most
        return
    chosen = allocate(aim, limits)
    assert total(aim, chosen) == pytest.approx(best, rel=1e-5, abs=1e-9)
    for limit in limits:
        assert total(limit.costs, chosen) <= limit.most * (1 + 1e-8)


def test_a_limit_that_is_too_strict_alone_is_named_with_the_least_sum():
    with pytest.raises(Impossible) as caught:
        allocate([[0.0, 1.0]], [Limit("size_ratio", [[5.0, 3.0]], 2.0)])
    assert caught.value.args == ("size_ratio", 3.0, ())


def test_limits_that_exclude_each_other_are_both_named():
    sizes, times = Limit("size_ratio", [[1.0, 3.0]], 2.0), Limit("latency", [[4.0, 1.0]], 2.0)
    with pytest.raises(Impossible) as caught:
        allocate([[0.0, 0.0]], [sizes, times])
    assert caught.value.args == ("latency", 4.0, ("size_ratio",))


def test_of_equal_options_the_first_is_taken():
    assert allocate([[1.0, 1.0], [2.0, 2.0]]) == [0, 0]


def test_a_model_without_sites_has_one_choice():
    assert allocate([]) == []
    with pytest.raises(Impossible):
        allocate([], [Limit("size_ratio", [], -1.0)])


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("beyond", [1e-7, 1e-6, 3e-6])
def test_a_choice_that_passes_a_limit_by_the_tolerance_of_the_solver_is_not_taken(
    scale, beyond, monkeypatch
):
    """Even where the scale leaves the solver free to find it: then limits are tightened."""
    monkeypatch.setattr(allocation, "_SCALE", scale)
    # The last of the three would be best, and of the sums of two only that is beyond the limit.
    aim = [[10.0, 5.0, 0.0], [10.0, 5.0, 0.0]]
    costs = [[1.0, 4.0, 5.0 + beyond], [1.0, 4.0, 5.0]]
    limit = Limit("size_ratio", costs, 10.0)
    found = allocate(aim, [limit])
    assert limit.keeps(total(costs, found))
    assert total(aim, found) == 5.0


@pytest.mark.parametrize("seed", range(20))
def test_of_many_sums_near_the_limit_none_beyond_it_is_taken(seed):
    """Bytes of layers beside one of a thousand million, whose millionth is many of them."""
    random = np.random.default_rng(seed)
    costs = np.sort(random.integers(1, 2000, (8, 3)).astype(float), axis=1)
    aim = np.sort(random.random((8, 3)), axis=1)[:, ::-1]
    costs = [[1e9, 1.0], *costs.tolist()]
    aim = [[0.0, 1e-3], *aim.tolist()]
    limit = Limit("size_ratio", costs, 1e9 + float(random.integers(4000, 9000)))
    found = allocate(aim, [limit])
    assert limit.keeps(total(costs, found))
    assert total(aim, found) == pytest.approx(_brute_force(aim, [limit]), rel=1e-5)


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_search_that_ends_too_early_says_so(nodes, monkeypatch):
    monkeypatch.setattr(allocation, "_NODES", nodes)
    random = np.random.default_rng(0)
    tables = [random.integers(1, 100, (12, 4)).astype(float) for _ in range(5)]
    limits = [
        Limit(f"limit {number}", costs.tolist(), float(0.75 * costs.mean(axis=1).sum()))
        for number, costs in enumerate(tables[1:])
    ]
    with pytest.raises(PlanError, match=f"limit 0 together with .* ended after {nodes} .*; raise"):
        allocate(tables[0].tolist(), limits)


@pytest.mark.parametrize("seed", range(3))
def test_models_of_two_hundred_sites_are_solved_within_a_thousandth(seed):
    """The bound is that of the linear relaxation, which no choice can pass."""
    random = np.random.default_rng(seed)
    bits = np.array([32, 8.25, 4.25, 4.5, 3.3, 3.5, 2.2, 12, 16])
    sizes = random.choice([0.3, 0.8, 0.8, 2.6], 200)
    noise = random.lognormal(0, 1, (200, 1)) * 4.0**-bits * random.lognormal(0, 0.3, (200, 9))
    costs = sizes[:, None] * bits
    most = 0.15 * costs[:, 0].sum()
    chosen = allocate(noise.tolist(), [Limit("size_ratio", costs.tolist(), most)])
    found = total(noise.tolist(), chosen)
    assert total(costs.tolist(), chosen) <= most
    # Lagrangian duality: for every price of a byte this is a bound from below.
    bound = max(
        (noise + price * costs).min(axis=1).sum() - price * most
        for price in np.geomspace(1e-9, 1e3, 4000)
    )
    assert bound <= found * (1 + 1e-9)
    assert found <= 1.001 * bound + 1e-9


def test_the_hull_has_the_corners_that_a_price_can_choose():
    costs, losses = [4.0, 1.0, 2.0, 3.0, 3.0], [0.0, 9.0, 8.0, 1.0, 2.0]
    assert lower_hull(costs, losses) == [1, 3, 0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_for_every_price_the_best_option_is_on_the_hull(points):
    costs, losses = [float(c) for c, _ in points], [float(d) for _, d in points]
    hull = lower_hull(costs, losses)
    for price in (0.0, 0.1, 0.5, 1.0, 3.0, 20.0):
        values = [d + price * c for c, d in zip(costs, losses, strict=True)]
        assert min(values) == pytest.approx(min(values[option] for option in hull))


@pytest.mark.parametrize("seed", [25, 32])
def test_the_solver_writes_nothing(seed, capfd):
    """Seeds for which HiGHS 1.12 repairs a solution, and says so whatever it is told."""
    random = np.random.default_rng(seed)
    bits = np.array([32, 8.25, 4.25, 5, 3.3, 4.25, 2.2, 12, 16])
    aim = random.lognormal(0, 2, (40, 1)) * 4.0**-bits * random.lognormal(0, 0.3, (40, 9))
    costs = random.choice([0.3, 0.8, 2.6], 40)[:, None] * bits
    limits = [
        Limit("size_ratio", costs.tolist(), float(0.15 * costs[:, 0].sum())),
        Limit("max_drop", aim.tolist(), float(np.median(aim)) * 4000),
    ]
    allocate(aim.tolist(), limits)
    assert capfd.readouterr().out == ""


def test_threads_that_solve_at_once_leave_the_output_as_it_was(capfd):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: allocate([[1.0, 0.0]] * 3), range(40)))
    assert found == [[1, 1, 1]] * 40
    os.write(1, b"still there")
    assert capfd.readouterr().out == "still there"


def test_what_the_solver_writes_does_not_stand_behind_json_in_a_file():
    """C keeps it in its buffer until the process ends, when nothing is turned away any more."""
    code = (
        "import ctypes\n"
        "from undense.passes.allocate import _without_output\n"
        "printf = ctypes.CDLL(None).printf\n"
        "printf(b'before ')\n"
        "with _without_output():\n"
        "    printf(b'of the solver ')\n"
        "print('after')\n"
    )
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=buffered
    )
    assert found.stdout == "before after\n"
