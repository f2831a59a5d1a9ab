"""What is measured, what is predicted, and how a choice settles on the joint distortion."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pricing import BITS, model, schemes, site
from undense.passes.auto import uniform
from undense.passes.budget import Budget
from undense.passes.errors import PlanError
from undense.passes.sensitivity import Sensitivities
from undense.passes.settle import settle

EIGHT, FOUR, TWO = BITS


class Network:
    """Distortions of `s · e²` at each site, times `joint` where several are replaced."""

    def __init__(self, priced, sensitivities, *, joint=1.0, surprises=None, rounding=0.25):
        self.errors = {(s.name, o.scheme): o.error for s in priced.sites for o in s.options}
        self.sensitivities, self.joint, self.rounding = sensitivities, joint, rounding
        self.surprises = surprises or {}
        self.calls = []

    def __call__(self, chosen):
        self.calls.append(dict(chosen))
        found = 0.0
        for name, scheme in chosen.items():
            if isinstance(scheme, int):  # columns that are rounded with one scale
                found += self.rounding * self.sensitivities[name] * scheme**-2
                continue
            factor = self.surprises.get((name, scheme), 1.0)
            found += factor * self.sensitivities[name] * self.errors[name, scheme] ** 2
        return found * (self.joint if len(chosen) > 1 else 1.0)


class Clock:
    """A second a look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def _unknown(*names):
    """Sites whose distortions are not known yet."""
    priced = model(*map(site, names))
    sites = tuple(
        replace(s, options=(s.dense, *(replace(o, distortion=0.0) for o in s.options[1:])))
        for s in priced.sites
    )
    return replace(priced, sites=sites)


def test_one_measurement_of_a_site_tells_its_other_options():
    priced = _unknown("a", "b")
    network = Network(priced, {"a": 3.0, "b": 0.5})
    found = Sensitivities(network, seconds=1e9).priced(priced)
    assert len(network.calls) == 2
    for one, sensitivity in zip(found.sites, (3.0, 0.5), strict=True):
        assert [o.distortion for o in one.options] == pytest.approx(
            [sensitivity * o.error**2 for o in one.options]
        )
        assert [o.measured for o in one.options] == [True, False, True, False]


def _rounding(*names):
    """Sites with another form of each option, that rounds x in blocks of 4 or 16 columns."""
    priced = _unknown(*names)
    sites = []
    for number, one in enumerate(priced.sites):
        block = 4 if number % 2 else 16
        others = (
            replace(
                o, scheme=f"{o.scheme}, rounded", weights=o.scheme, rounding=1 / block, block=block
            )
            for o in one.options[1:]
        )
        sites.append(replace(one, options=(*one.options, *others)))
    return replace(priced, sites=tuple(sites))


class Rounding(Network):
    """What is rounded loses a quarter of `s · r²` beside what its weights do."""

    def __call__(self, chosen):
        weights = {n: s.removesuffix(", rounded") for n, s in chosen.items() if isinstance(s, str)}
        blocks = {n: s for n, s in chosen.items() if isinstance(s, int)}
        blocks |= {n: self.blocks[n] for n, s in chosen.items() if str(s).endswith("rounded")}
        return super().__call__(weights) + super().__call__(blocks)


def test_rounding_is_measured_alone_and_with_the_weights_of_what_is_chosen():
    priced = _rounding("a", "b")
    network = Rounding(priced, {"a": 3.0, "b": 0.5})
    network.blocks = {"a": 16, "b": 4}
    sensitivities = Sensitivities(network, seconds=1e9)
    found = sensitivities.priced(priced)
    assert len(network.calls) == 2 * 4  # each call of `Rounding` is two of `Network`
    for one, sensitivity in zip(found.sites, (3.0, 0.5), strict=True):
        for option in one.options[1:]:
            expected = sensitivity * (option.error**2 + 0.25 * option.rounding**2)
            assert option.distortion == pytest.approx(expected)
            assert not (option.measured and option.rounding)
    chosen = [4, 4]
    refined = sensitivities.refine(found, chosen)
    assert all(option.measured for option in refined.taken(chosen))
    assert sensitivities.joint(refined, chosen) == pytest.approx(refined.distortion(chosen))
    check = sensitivities.check(refined)
    assert check["median_ratio"] == pytest.approx(1.0)
    assert any(pair["scheme"].endswith("rounded") for pair in check["pairs"])


def test_rounding_that_time_does_not_reach_is_as_elsewhere():
    priced = _rounding("a", "b")
    network = Rounding(priced, dict.fromkeys("ab", 2.0))
    network.blocks = {"a": 16, "b": 4}
    # A look at the clock is a second: after both weights and one rounding half of the time is up.
    found = Sensitivities(network, seconds=10.0, clock=Clock()).priced(priced)
    assert len(network.calls) == 2 * 3
    for one in found.sites:
        for option in one.options[1:]:
            expected = 2.0 * (option.error**2 + 0.25 * option.rounding**2)
            assert option.distortion == pytest.approx(expected)


def test_what_is_told_of_the_progress_never_goes_beyond_its_total():
    told = []
    priced = _rounding(*"abcdef")
    network = Rounding(priced, dict.fromkeys("abcdef", 1.0))
    network.blocks = {name: 4 if number % 2 else 16 for number, name in enumerate("abcdef")}
    sensitivities = Sensitivities(
        network, seconds=1e9, progress=lambda done, total, text: told.append((done, total))
    )
    settle(sensitivities.priced(priced), Budget(max_drop=0.01), sensitivities)
    sensitivities.finish()
    assert all(done < total for done, total in told[:-1])
    assert told[-1][0] == told[-1][1] > 12
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_sites_that_time_does_not_reach_take_the_mean_of_their_shape():
    priced = _unknown("a", "b", "c")
    network = Network(priced, dict.fromkeys("abc", 2.0))
    found = Sensitivities(network, seconds=0.5, clock=Clock()).priced(priced)
    assert len(network.calls) == 1
    for one in found.sites:
        assert [o.distortion for o in one.options] == pytest.approx(
            [2.0 * o.error**2 for o in one.options]
        )


def test_predictions_are_compared_with_measurements():
    priced = _unknown("a", "b")
    surprises = {("a", EIGHT): 2.0, ("a", TWO): 2.0, ("b", EIGHT): 2.0, ("b", TWO): 2.0}
    network = Network(priced, {"a": 3.0, "b": 0.5}, surprises=surprises)
    sensitivities = Sensitivities(network, seconds=1e9)
    check = sensitivities.check(sensitivities.priced(priced))
    assert len(check["pairs"]) == 4  # the references are no predictions
    assert check["median_ratio"] == pytest.approx(2.0)
    assert check["p25_ratio"] == check["p75_ratio"] == pytest.approx(2.0)


def test_without_time_nothing_is_compared():
    priced = _unknown("a")
    sensitivities = Sensitivities(Network(priced, {"a": 1.0}), seconds=0.0, clock=Clock())
    check = sensitivities.check(sensitivities.priced(priced))
    assert check == {"pairs": [], "p25_ratio": None, "median_ratio": None, "p75_ratio": None}


def test_what_was_chosen_is_measured_and_chosen_again():
    priced = _unknown("a", "b")
    # Two bits at b are a thousand times worse than its four bits tell.
    network = Network(priced, {"a": 1.0, "b": 1.0}, surprises={("b", TWO): 1000.0})
    budget = Budget(size_ratio=4 / 32)
    sensitivities = Sensitivities(network, seconds=1e9)
    found = settle(sensitivities.priced(priced), budget, sensitivities)
    assert schemes(found.model, found.chosen) == [FOUR, FOUR]
    assert found.joint == pytest.approx(2 * 2.0**-8)
    assert found.additivity == pytest.approx(1.0)


@pytest.mark.parametrize("joint", [0.3, 3.0])
def test_the_drop_is_held_to_the_joint_distortion(joint):
    names = "abcdef"
    priced = _unknown(*names)
    network = Network(priced, {n: 4.0**-i for i, n in enumerate(names)}, joint=joint)
    sensitivities = Sensitivities(network, seconds=1e9)
    limit = 0.01
    found = settle(sensitivities.priced(priced), Budget(max_drop=limit), sensitivities)
    assert found.joint <= limit
    assert found.additivity == pytest.approx(joint)
    # No more could have been had: the sum that it stands for is near what the joint one allows.
    assert found.model.distortion(found.chosen) > 0.3 * limit / joint


def test_a_drop_that_only_the_sum_keeps_is_refused_with_the_cause():
    priced = _unknown("a", "b")
    network = Network(priced, {"a": 1.0, "b": 1.0}, joint=50.0)
    sensitivities = Sensitivities(network, seconds=1e9)
    budget = Budget(size_ratio=4 / 32, max_drop=0.01)
    with pytest.raises(
        PlanError,
        match=r"0.01 cannot be kept together with size_ratio=0.125: .* 50.00 times the sum",
    ):
        settle(sensitivities.priced(priced), budget, sensitivities)


def test_swaps_mend_a_choice_that_the_sum_misled():
    priced = _unknown("a", "b")
    without_four = (
        replace(s, options=tuple(o for o in s.options if o.scheme != FOUR)) for s in priced.sites
    )
    priced = replace(priced, sites=tuple(without_four))

    class Coupled(Network):
        """Two bits at b are far worse once a is replaced too."""

        def __call__(self, chosen):
            found = super().__call__(chosen)
            return found * (10.0 if chosen.get("b") == TWO and len(chosen) > 1 else 1.0)

    network = Coupled(priced, {"a": 1.01, "b": 1.0})
    sensitivities = Sensitivities(network, seconds=1e9)
    budget = Budget(size_ratio=5 / 32)
    found = settle(sensitivities.priced(priced), budget, sensitivities)
    assert schemes(found.model, found.chosen) == [TWO, EIGHT]
    assert found.swaps == 1


def test_one_scheme_for_all_is_taken_where_it_loses_less_than_the_sum_says():
    class Alike(Network):
        """Errors of one kind cancel out."""

        def __call__(self, chosen):
            alike = len(chosen) > 1 and len(set(chosen.values())) == 1
            return super().__call__(chosen) * (0.5 if alike else 1.0)

    priced = _unknown(*"abcdef")
    network = Alike(priced, dict.fromkeys("abcdef", 1.0))
    sensitivities = Sensitivities(network, seconds=1e9)
    # With a mean of 4.7 bits one of six sites may have 8, and by the sum it should.
    found = settle(sensitivities.priced(priced), Budget(effective_bits=4.7), sensitivities)
    assert schemes(found.model, found.chosen) == [FOUR] * 6
    assert found.joint == pytest.approx(network(dict.fromkeys("abcdef", FOUR)))
    strict = Sensitivities(Network(priced, network.sensitivities), seconds=1e9)
    other = settle(strict.priced(priced), Budget(effective_bits=4.7), strict)
    assert schemes(other.model, other.chosen).count(EIGHT) == 1


def test_schemes_that_differ_by_the_group_of_a_shape_are_one():
    def named(name, *texts):
        one = site(name)
        options = (replace(o, scheme=s) for o, s in zip(one.options[1:], texts, strict=True))
        return replace(one, options=(one.dense, *options))

    priced = model(
        named("a", "int_codes", "int_codes{bits=4,group=64,activations=int8}", "low_rank{rank=2}"),
        named("b", "int_codes{group=64}", "int_codes{bits=4,activations=int8}", "low_rank{rank=1}"),
        replace(site("c"), fixed=1),
    )
    assert uniform(priced, Budget(size_ratio=0.9), [3, 3, 1]) == [
        [0, 0, 1], [1, 1, 1], [2, 2, 1], [3, 3, 1],
    ]  # fmt: skip


def test_one_scheme_leaves_out_the_sites_where_the_gate_is_closed_for_it():
    slow = site("a")
    fours = replace(slow.options[2], milliseconds=dict.fromkeys(slow.options[2].milliseconds, 9.0))
    slow = replace(slow, options=(*slow.options[:2], fours, slow.options[3]))
    found = uniform(model(slow, site("b")), Budget(latency_ratio=1.0), [3, 3])
    assert [3, 2] in found
    assert [0, 2] in found
    assert [2, 2] not in found


def test_the_next_smaller_error_is_measured_where_outputs_are_not_finite():
    priced = _unknown("a")
    network = Network(priced, {"a": 2.0}, surprises={("a", FOUR): math.inf, ("a", TWO): math.inf})
    found = Sensitivities(network, seconds=1e9).priced(priced)
    by_scheme = {option.scheme: option.distortion for option in found.sites[0].options}
    assert by_scheme[FOUR] == math.inf
    assert by_scheme[EIGHT] == pytest.approx(2.0 * 2.0**-16)
    assert by_scheme[TWO] == pytest.approx(2.0 * 2.0**-4)  # predicted, until it is chosen


def test_a_site_whose_every_form_is_not_finite_stays_dense():
    priced = _unknown("a", "b")
    rounded = (replace(o, rounding=0.1, block=32) for o in priced.sites[0].options[1:])
    site_a = replace(priced.sites[0], options=(priced.sites[0].dense, *rounded))
    priced = replace(priced, sites=(site_a, priced.sites[1]))
    surprises = dict.fromkeys([("a", scheme) for scheme in BITS], math.inf)
    network = Network(priced, {"a": 1.0, "b": 1.0}, surprises=surprises)
    sensitivities = Sensitivities(network, seconds=1e9)
    budget = Budget(max_drop=0.01)
    found = settle(sensitivities.priced(priced), budget, sensitivities)
    assert schemes(found.model, found.chosen)[0] == "dense"


def test_one_scheme_for_all_is_measured_even_if_the_time_is_up():
    class Alike(Network):
        """Errors of one kind cancel out, and others add up."""

        def __call__(self, chosen):
            alike = len(chosen) > 1 and len(set(chosen.values())) == 1
            return super().__call__(chosen) * (0.5 if alike else 1.3)

    names = "abcdef"
    priced = _unknown(*names)
    network = Alike(priced, dict(zip(names, (1, 1, 1, 0.2, 0.2, 0.2), strict=True)))
    sensitivities = Sensitivities(network, seconds=10.0, clock=Clock())
    found = settle(sensitivities.priced(priced), Budget(effective_bits=4.0), sensitivities)
    assert sensitivities.time_is_up
    assert schemes(found.model, found.chosen) == [FOUR] * 6


def test_a_drop_that_only_the_joint_distortion_keeps_is_kept():
    priced = _unknown("a", "b")
    network = Network(priced, {"a": 1.0, "b": 1.0}, joint=0.5)
    sensitivities = Sensitivities(network, seconds=1e9)
    least = 2 * 2.0**-8
    budget = Budget(size_ratio=4 / 32, max_drop=0.75 * least)
    found = settle(sensitivities.priced(priced), budget, sensitivities)
    assert found.model.distortion(found.chosen) == pytest.approx(least)
    assert found.joint == pytest.approx(least / 2)


def test_what_named_schemes_lose_alone_may_be_more_than_they_do_together():
    priced = model(replace(site("a"), fixed=3), replace(site("b"), fixed=3), site("c"))
    network = Network(priced, dict.fromkeys("abc", 1.0), joint=0.5)
    sensitivities = Sensitivities(network, seconds=1e9)
    asked = network({"a": TWO, "b": TWO})
    found = settle(sensitivities.priced(priced), Budget(max_drop=1.9 * asked), sensitivities)
    assert found.joint <= 1.9 * asked
    assert schemes(found.model, found.chosen)[2] != "dense"


def test_outputs_that_only_together_are_not_finite_are_refused():
    priced = _unknown("a", "b")

    class Overflows(Network):
        def __call__(self, chosen):
            return math.inf if len(chosen) > 1 else super().__call__(chosen)

    sensitivities = Sensitivities(Overflows(priced, {"a": 1.0, "b": 1.0}), seconds=1e9)
    with pytest.raises(PlanError, match=r"with size_ratio=0.125 the outputs .* not finite"):
        settle(sensitivities.priced(priced), Budget(size_ratio=4 / 32), sensitivities)
