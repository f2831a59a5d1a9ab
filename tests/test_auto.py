"""What a budget makes of priced options: limits, the gate, the reasons, refusals."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing import BITS, model, schemes, site
from undense.passes.auto import allowed, choose, exceeded, pareto, reason, runners_up, swaps
from undense.passes.budget import DEFAULT_DROP, Budget, rounded_up
from undense.passes.errors import PlanError, SchemeError
from undense.passes.pricing import PricedModel

EIGHT, FOUR, TWO = BITS


def test_without_limits_of_cost_the_cheapest_within_the_drop_is_taken():
    priced = model(site("loud", 1.0), site("quiet", 1e-3))
    assert schemes(priced, choose(priced, Budget(max_drop=1e-3), 1e-3)) == [EIGHT, TWO]
    assert schemes(priced, choose(priced, Budget(max_drop=1.0), 1.0)) == [TWO, TWO]


def test_within_a_size_the_least_distortion_is_taken():
    priced = model(site("loud", 1.0), site("quiet", 1e-3))
    # Six bits on the average: the eight go where they matter.
    assert schemes(priced, choose(priced, Budget(size_ratio=6 / 32))) == [EIGHT, FOUR]
    assert schemes(priced, choose(priced, Budget(effective_bits=6))) == [EIGHT, FOUR]


def test_weights_that_are_no_sites_count_in_the_size():
    half = model(site("a"), other_bytes=4 * 64 * 64)
    assert schemes(half, choose(half, Budget(size_ratio=0.5 + 4 / 64))) == [FOUR]
    with pytest.raises(PlanError, match=r"size_ratio=0.5 cannot be kept: .* is 0.531"):
        choose(half, Budget(size_ratio=0.5))


def test_the_latency_is_limited_at_every_batch_and_with_the_rest_of_the_run():
    priced = model(site("a"), site("b"), rest=2.0)
    # Of 4 ms at batch 1 two are the rest: at 0.65 the sites may take 0.6 ms.
    assert schemes(priced, choose(priced, Budget(latency_ratio=0.65))) == [EIGHT, EIGHT]
    with pytest.raises(PlanError, match=r"latency_ratio=0.5 at batch 1 cannot be kept"):
        choose(priced, Budget(latency_ratio=0.5))


def test_what_is_slower_is_not_chosen_for_latency_but_for_size_it_is():
    slow = site("a", slow={EIGHT: 0.9, FOUR: 1.3, TWO: 1.5})
    priced = model(slow)
    assert schemes(priced, choose(priced, Budget(latency_ratio=0.95))) == [EIGHT]
    assert schemes(priced, choose(priced, Budget(size_ratio=0.1))) == [TWO]
    assert schemes(priced, choose(priced, Budget(max_drop=1.0), 1.0)) == [EIGHT]
    all_slow = model(site("a", slow=dict.fromkeys(BITS, 1.3)))
    chosen = choose(all_slow, Budget(max_drop=1.0), 1.0)
    assert schemes(all_slow, chosen) == ["dense"]
    said = reason(all_slow.sites[0], 0, Budget(max_drop=1.0))
    assert said == f"kept dense: {EIGHT} would take 1.30× the time at batch 1"


def test_a_dense_site_says_what_its_best_option_would_have_cost():
    priced = model(site("a", 1e3))
    budget = Budget(max_drop=1e-4)
    assert schemes(priced, choose(priced, budget, 1e-4)) == ["dense"]
    assert f"{EIGHT} would add 0.015 to the distortion" in reason(priced.sites[0], 0, budget)


def test_every_other_option_has_a_reason():
    priced = model(site("a", slow={TWO: 2.0}))
    found = {row["scheme"]: row["reason"] for row in runners_up(priced.sites[0], 2, Budget())}
    assert found.keys() == {"dense", EIGHT, TWO}
    assert found[TWO] == "would take 2.00× the time at batch 1"
    assert "less distortion" in found[EIGHT]


def test_limits_that_exclude_each_other_are_both_named():
    priced = model(site("a"), site("b"))
    with pytest.raises(PlanError, match=r"max_drop=1e-05 cannot .* with size_ratio=0.125") as info:
        choose(priced, Budget(size_ratio=0.125, max_drop=1e-5), 1e-5)
    assert "is 0.00781" in str(info.value)


def test_what_was_asked_for_by_name_stays_and_counts():
    fixed = site("embedding", fixed=1)
    priced = model(fixed, site("b"))
    chosen = choose(priced, Budget(size_ratio=5 / 32))
    assert schemes(priced, chosen) == [EIGHT, TWO]
    assert reason(fixed, 1, Budget()) == "asked for"


def test_pareto_points_fall_in_distortion_as_they_grow():
    priced = model(*(site(f"s{number}", 10.0**-number) for number in range(6)))
    points = pareto(priced, Budget(max_drop=0.01))
    assert len(points) == 5
    sizes = [priced.size_ratio(point) for point in points]
    losses = [priced.distortion(point) for point in points]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 5
    assert losses == sorted(losses, reverse=True)
    assert schemes(priced, points[0]) == [TWO] * 6


@pytest.mark.parametrize(
    "budget", [Budget(max_drop=0.01), Budget(latency_ratio=0.9), Budget(0.5, latency_ratio=1.0)]
)
def test_pareto_points_have_nothing_slower_unless_the_size_alone_counts(budget):
    slow = dict.fromkeys(BITS, 1.5)
    some = model(site("fast"), site("mixed", slow={TWO: 1.5}), site("slow", slow=slow))
    points = pareto(some, budget)
    assert schemes(some, points[0]) == [TWO, FOUR, "dense"]
    for point in points:
        gates = [s.gate(o, budget) for s, o in zip(some.sites, some.taken(point), strict=True)]
        assert gates == [""] * 3
        # What is kept dense for being slow stands beside nothing that is.
        assert "1.50× the time" in reason(some.sites[2], point[2], budget)
    sizes = [some.size_ratio(point) for point in points]
    assert sizes == sorted(set(sizes))
    assert schemes(some, pareto(some, Budget(size_ratio=0.9))[0]) == [TWO] * 3
    every = model(site("a", slow=slow), site("b", slow=slow))
    assert [schemes(every, point) for point in pareto(every, budget)] == [["dense"] * 2]


def test_pareto_points_keep_what_was_asked_for_by_name_however_slow():
    fixed = site("fixed", slow={TWO: 1.5}, fixed=3)
    priced = model(fixed, site("free"))
    points = pareto(priced, Budget(max_drop=0.01))
    assert {point[0] for point in points} == {3}
    assert schemes(priced, points[0]) == [TWO, TWO]


@pytest.mark.parametrize("rest", [None, 2.0, 1e5])
@pytest.mark.parametrize(
    "budget",
    [
        Budget(size_ratio=0.01),
        Budget(effective_bits=0.1),
        Budget(latency_ratio=0.01),
        Budget(size_ratio=0.0703, latency_ratio=0.01),
        Budget(effective_bits=5, max_drop=1e-6),
    ],
)
def test_the_limit_that_a_refusal_names_is_kept(budget, rest):
    named = site("named", 3.3, slow={EIGHT: 0.777}, fixed=1)
    priced = model(named, site("b", 0.7), site("c", 1.1), other_bytes=1001, rest=rest)
    for _ in range(5):
        try:
            choose(priced, budget, budget.max_drop)
            break
        except PlanError as refused:
            said = re.search(r"budget: (\w+)=.* reach is ([\d.e-]+); raise", str(refused))
            assert float(said[2]) > getattr(budget, said[1])
            budget = replace(budget, **{said[1]: float(said[2])})
    chosen = choose(priced, budget, budget.max_drop)
    assert not exceeded(priced, budget, chosen)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.078125, "0.07813"),
        (0.30000000000000004, "0.3"),
        (0.5, "0.5"),
        (12345.1, "12350"),
        (1.2345e-9, "1.235e-09"),
        (0.0, "0"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_that_a_limit_is_raised_to_are_rounded_up(value, said):
    assert rounded_up(value) == said


@given(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=5),
    st.integers(0, 10**9),
    st.sampled_from([1e-8, 3e-9, -3e-9, -1e-8, 0.0]),
    st.randoms(use_true_random=False),
)
def test_what_is_chosen_is_not_exceeded_however_near_the_limit(sizes, rest, nudge, random):
    """Layers of very different size: the solver's tolerance is of the largest."""
    sites = [_of_bytes(f"s{n}", 4 * size, random) for n, size in enumerate(sizes)]
    priced = model(*sites, other_bytes=rest)
    some = [random.randrange(4) for _ in sites]
    budget = Budget(size_ratio=priced.size_ratio(some) * (1 + nudge))
    try:
        chosen = choose(priced, budget)
    except PlanError:
        assert exceeded(priced, budget, some)
        return
    assert not exceeded(priced, budget, chosen)
    assert priced.size_ratio(chosen) <= budget.size_ratio * (1 + 1e-9)
    if not exceeded(priced, budget, some):
        assert priced.distortion(chosen) <= priced.distortion(some) * (1 + 1e-5)


def _of_bytes(name, dense, random):
    one = site(name, random.uniform(0.1, 10.0))
    bits = (32, 8, 4, 2)
    sizes = (dense * b // 32 + random.randrange(2) for b in bits)
    options = (replace(o, bytes=size) for o, size in zip(one.options, sizes, strict=True))
    return replace(one, options=tuple(options))


def test_every_batch_that_takes_too_long_counts_and_the_worst_is_said():
    priced = model(site("a", slow={EIGHT: 0.9}), rest=1.0)
    found = exceeded(priced, Budget(size_ratio=0.2, latency_ratio=0.5), [1])
    assert found == pytest.approx({"size_ratio": 0.25, "latency_ratio": 0.95}, abs=0.03)
    assert found["latency_ratio"] == max(priced.latency_ratio([1], b) for b in (1, 32))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6), st.floats(0.07, 1.0))
def test_what_is_chosen_is_allowed_and_no_uniform_scheme_beats_it(sensitivities, ratio):
    priced = model(*(site(f"s{n}", value) for n, value in enumerate(sensitivities)))
    budget = Budget(size_ratio=ratio)
    chosen = choose(priced, budget)
    assert allowed(priced, budget, chosen)
    for option in range(4):
        uniform = [option] * len(sensitivities)
        if allowed(priced, budget, uniform):
            assert priced.distortion(chosen) <= priced.distortion(uniform) * (1 + 1e-5)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4),
    st.sampled_from(
        [
            Budget(size_ratio=0.2),
            Budget(effective_bits=5),
            Budget(latency_ratio=0.3, size_ratio=0.5),
        ]
    ),
)
def test_swaps_are_all_pairs_that_keep_the_limits_best_first(sensitivities, budget):
    priced = model(*(site(f"s{n}", value) for n, value in enumerate(sensitivities)))
    chosen = choose(priced, budget)
    found = list(swaps(priced, budget, chosen, 100))
    sums = [priced.distortion(other) for other in found]
    assert all(after >= before * (1 - 1e-9) for before, after in itertools.pairwise(sums))
    expected = [
        list(other)
        for other in itertools.product(range(4), repeat=len(chosen))
        if sorted(_changes(priced, chosen, other)) == [False, True]
        and allowed(priced, budget, other)
    ]
    assert sorted(found) == sorted(expected)
    assert set(map(tuple, swaps(priced, budget, chosen, 1))) <= set(map(tuple, found))


def _changes(priced, chosen, other):
    """Whether each change of a choice lowers the distortion."""
    pairs = zip(priced.taken(chosen), priced.taken(other), strict=True)
    return [after.distortion < before.distortion for before, after in pairs if after != before]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Budget(max_drop=DEFAULT_DROP)),
        ("size_ratio=0.25, max_drop=0.01", Budget(size_ratio=0.25, max_drop=0.01)),
        ({"latency_ratio": 1}, Budget(latency_ratio=1.0)),
        ("max_drop=0", Budget(max_drop=0.0)),
    ],
)
def test_budgets_are_read(given, expected):
    assert Budget.parse(given) == expected


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("size=0.5", "unknown key 'size'; known are size_ratio, latency_ratio"),
        ("size_ratio", "not of the form key=number"),
        ("size_ratio=small", "wants a number, not 'small'"),
        ("size_ratio=0", "above 0, not 0"),
        ("size_ratio=nan", "above 0, not nan"),
        ("size_ratio=-1", "above 0, not -1"),
        ("max_drop=inf", "max_drop is a number of 0 or more, not inf"),
        ("size_ratio=0.5,size_ratio=0.5", "given twice"),
        ("", "is empty"),
        ({}, "is empty"),
    ],
)
def test_budgets_that_are_not_understood_are_refused(given, cause):
    with pytest.raises(SchemeError, match=cause):
        Budget.parse(given)


def test_for_size_alone_nothing_but_the_distortion_counts_within_it():
    slow = site("a", slow={EIGHT: 1.1, FOUR: 1.3})
    priced = model(slow)
    assert schemes(priced, choose(priced, Budget(size_ratio=0.3))) == [EIGHT]
    limits = Budget(size_ratio=0.3, latency_ratio=1.0)
    assert schemes(priced, choose(priced, limits)) == [TWO]


def test_a_large_site_may_take_what_no_run_shows():
    table, linears = site("table"), [site(name) for name in "abcd"]
    options = tuple(
        replace(option, bytes=100 * option.bytes, milliseconds={1: 0.0 if n == 0 else spent})
        for n, (option, spent) in enumerate(zip(table.options, (0, 0.05, 0.07, 0.09), strict=True))
    )
    rest = [replace(one, options=_at_batch_one(one)) for one in linears]
    # A run takes 4 ms: of 2 % of them the table, of 100 times the bytes, has 0.077 ms.
    priced = PricedModel.of([replace(table, options=options), *rest], 10**9, {1: 0.0}, 0)
    gates = [priced.sites[0].gate(option, Budget(latency_ratio=0.9)) for option in options[1:]]
    assert gates == ["", "", "would take 0.09 ms at batch 1"]
    assert sum(found.slack[1] for found in priced.sites) == pytest.approx(0.02 * 4)


def _at_batch_one(one):
    return tuple(replace(o, milliseconds={1: o.milliseconds[1]}) for o in one.options)


def test_a_named_scheme_without_finite_outputs_is_refused_by_its_site():
    bad = site("bad", fixed=1)
    options = (bad.dense, replace(bad.options[1], distortion=float("inf")), *bad.options[2:])
    priced = model(replace(bad, options=options), site("good"))
    with pytest.raises(PlanError, match=r"bad: as int_codes\{bits=8\} it makes outputs"):
        choose(priced, Budget(max_drop=0.1), 0.1)


def test_sizes_count_what_is_stored_beside_the_sites():
    """Of a model in float32 that is converted: dense sites and the rest are half of it."""
    priced = model(site("a"), other_bytes=100)
    half = replace(priced, bytes=2 * priced.bytes)
    assert half.size_ratio([0]) == 0.5
    chosen = choose(half, Budget(size_ratio=0.2))
    assert half.size_ratio(chosen) <= 0.2
