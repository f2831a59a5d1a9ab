"""A plan by measurement in the terminal: every number is one of the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plan_reports import planning_of, report_of, untimed
from pricing import BITS, model, site
from undense.passes.budget import Budget
from undense.passes.plan import Choice
from undense.passes.planning_report import costs, distortion_counts, site_costs
from undense.passes.pricing import Option, PricedModel, PricedSite
from undense.runtime.plan_report import point_rows, print_plan
from undense.runtime.report import print_report

EIGHT, FOUR, TWO = BITS
PLANNING = planning_of(model(site("loud", 10.0), site("quiet"), site("asked", fixed=3)))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_costs_are_those_of_the_model_with_batches_as_in_json():
    priced = model(site("a"), site("b"))
    found = costs(priced, [1, 3])
    assert found == {
        "size_ratio": priced.size_ratio([1, 3]),
        "latency_ratio": {"1": (0.25 + 0.0625) / 2, "32": (0.25 + 0.0625) / 2},
        "effective_bits": 5.0,
    }
    assert json.loads(json.dumps(found)) == found


def test_each_site_has_its_costs_beside_dense():
    other = site("b")
    known = replace(other.options[3], distortion=0.5, measured=True)
    priced = model(site("a"), replace(other, options=(*other.options[:3], known)))
    choices = [Choice("a", 64, 64, "dense", "why"), Choice("b", 64, 64, TWO)]
    dense, coded = site_costs(priced, [0, 3], choices)
    assert (dense["scheme"], dense["reason"], dense["relative_error"]) == ("dense", "why", 0.0)
    assert dense["bytes"] == {"dense": 16384, "chosen": 16384}
    assert coded["bytes"] == {"dense": 16384, "chosen": 1024}
    assert coded["milliseconds"] == {
        "1": {"dense": 1.0, "chosen": 0.0625, "ratio": 0.0625, "slower": False},
        "32": {"dense": 4.0, "chosen": 0.25, "ratio": 0.0625, "slower": False},
    }
    assert (coded["distortion"], coded["distortion_measured"]) == (0.5, True)
    assert distortion_counts(priced) == {"measured": 1, "predicted": 5}


def test_a_plan_is_printed_with_its_costs_and_choices(capsys):
    print_plan(PLANNING)
    out = lines(capsys)
    assert out[0] == "site scheme bytes time at batch 1 time at batch 32 error distortion"
    loud = PLANNING["sites"][0]
    share = loud["bytes"]["chosen"] / loud["bytes"]["dense"]
    assert out[1].startswith(f"loud {loud['scheme']} {share:.2%} {share:.2f}× {share:.2f}× ")
    assert out[1].endswith("measured" if loud["distortion_measured"] else "predicted")
    assert "budget size_ratio=0.25" in out
    assert f"bytes of weights {PLANNING['size_ratio']:.1%} of dense predicted" in out
    one, many = (f"{PLANNING['latency_ratio'][batch]:.2f}×" for batch in ("1", "32"))
    assert (
        f"time of a run {one} of dense at batch 1 predicted, {many} of dense at batch 32 predicted"
        in out
    )
    assert f"distortion {PLANNING['distortion']:.4g}, KL divergence of the logits, nats" in out
    additivity = (
        f"additivity {PLANNING['additivity']:.3g} times the sum of what each site loses alone"
    )
    assert additivity in out
    assert "compared on 5 samples that were held out, 3 that were calibrated on" in out
    counts = PLANNING["distortions"]
    assert counts["measured"] >= 2
    assert (
        f"options {counts['measured'] + counts['predicted']}; distortion of {counts['measured']} "
        "measured, others predicted" in out
    )
    prediction = PLANNING["prediction"]
    assert (
        f"prediction measured over predicted distortion: median {prediction['median_ratio']:.3g}, "
        f"quartiles {prediction['p25_ratio']:.3g} and {prediction['p75_ratio']:.3g}, at "
        f"{len(prediction['pairs'])} options" in out
    )
    assert f"1 {TWO}" in out or f"2 {TWO}" in out
    assert out[-1] == "note: planned for size alone: <no> device"


def test_points_are_numbered_from_one_as_plan_takes_them(capsys):
    rows = point_rows(PLANNING)
    assert [row[0] for row in rows] == [str(n + 1) for n in range(len(PLANNING["pareto"]))]
    assert len(rows) > 2
    for row, point in zip(rows, PLANNING["pareto"], strict=True):
        assert row[1:] == [
            f"{point['size_ratio']:.1%}",
            f"{point['latency_ratio']['1']:.2f}×",
            f"{point['latency_ratio']['32']:.2f}×",
            f"{point['effective_bits']:.4g}",
            f"{point['distortion']:.4g}",
        ]
    print_plan(PLANNING)
    out = lines(capsys)
    start = out.index("point bytes time at batch 1 time at batch 32 bits/weight distortion")
    assert out[start + 1] == " ".join(rows[0])
    assert "--point N" in out[start - 1]


def test_a_site_that_stays_dense_says_why(capsys):
    small = Option("dense", 100, {1: 1.0}, 0.0, 0.0, measured=True)
    coded = Option(TWO, 10, {1: 1.0}, 0.1, 0.0, measured=False)
    sites = (PricedSite("a", 5, 5, (small,)), PricedSite("b", 5, 5, (small, coded)))
    print_plan(planning_of(PricedModel(sites, 200, {}, 0), Budget(size_ratio=0.75)))
    assert "a: kept dense: no form of this shape is smaller" in lines(capsys)


def test_a_compile_sets_the_actual_size_beside_the_predicted(capsys):
    print_report(report_of(PLANNING))
    out = lines(capsys)
    assert (
        f"bytes of weights {PLANNING['size_ratio']:.1%} of dense predicted, "
        f"{34_567 / 123_456:.1%} as written" in out
    )
    assert out[-1] == "warning: a <warning>"


def test_a_report_without_plan_says_nothing_of_one(capsys):
    print_report({**report_of(PLANNING), "planning": None})
    out = capsys.readouterr().out
    assert "additivity" not in out
    assert "--point" not in out


def test_times_that_were_not_measured_are_no_columns(capsys):
    print_plan(planning_of(untimed()))
    out = lines(capsys)
    assert out[0] == "site scheme bytes error distortion"
    assert "time of a run not measured" in out
    assert "prediction not compared with measurements" in out
    assert "point bytes bits/weight distortion" in out


def test_a_quartile_that_is_not_finite_is_none(capsys):
    check = {"pairs": [{}] * 4, "p25_ratio": 0.9, "median_ratio": 1.0, "p75_ratio": None}
    print_plan({**PLANNING, "prediction": check})
    assert any("quartiles 0.9 and none, at 4 options" in line for line in lines(capsys))


def test_what_json_lacks_is_a_dash(capsys):
    lost = {**PLANNING, "distortion": None, "additivity": None, "swaps": 0}
    print_plan(lost)
    out = lines(capsys)
    assert "distortion –, KL divergence of the logits, nats" in out
    assert not any(line.startswith(("additivity", "swaps")) for line in out)
