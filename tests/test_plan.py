from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphs import graph, normal
from undense.passes.errors import FitError, PlanError
from undense.passes.plan import Choice, Plan, read_plan, versions
from undense.passes.sites import Site, find_sites

PLAN = Plan(
    (
        Choice("up", 32, 48, "low_rank{rank=4}", "asked for"),
        Choice("down", 48, 32, "dense"),
    ),
    calibration="1a2b3c4d5e6f",
    seed=3,
    options={"target": "llvm", "dtype": "none"},
    versions={"undense": "0.1.0", "numpy": "2.0.0"},
)


def sites() -> list[Site]:
    text = "g (float[b,32] x) => (float[b,32] y) { h = MatMul(x, up)  y = MatMul(h, down) }"
    return find_sites(graph(text, up=normal(32, 48), down=normal(48, 32)))[0]


def test_text(golden: Callable[[str], None]) -> None:
    golden(PLAN.to_json())


def test_round_trip() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(PLAN.to_json(), encoding="utf-8")
    assert read_plan(file) == PLAN


def test_relative_schemes_are_resolved() -> None:
    plan = Plan.from_json(PLAN.to_json().replace("rank=4", "ratio=0.5"))
    assert plan.sites[0].scheme == "low_rank{rank=9}"


def test_scheme_that_the_shape_does_not_admit() -> None:
    with pytest.raises(FitError, match=r"^up: rank 40 is more than"):
        Plan.from_json(PLAN.to_json().replace("rank=4", "rank=40"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 3,', '"seed": 3', r"^p.json, line 20: not valid JSON"),
        ('"seed"', '"sead"', r"^p.json, line 19: sead: is not known; known are sites, cal"),
        ('"scheme": "dense"', '"skeme": "dense"', r"line 14: sites\[1\].skeme: is not known"),
        ('"seed": 3', '"seed": "3"', r'^p.json, line 19: seed: wants a whole number, not "3"'),
        ('"seed": 3', '"seed": true', r"line 19: seed: wants a whole number, not true"),
        ('"seed": 3', '"seed": 3, "seed": 4', r"line 19: seed: is there twice"),
        ('"in_features": 32', '"in_features": 32.5', r"line 5: sites\[0\].in_features: wants"),
        ('"in_features": 32,', "", r"^p.json: sites\[0\].in_features: is missing"),
        ('"1a2b3c4d5e6f"', "17", r"line 18: calibration: wants a text or null, not 17"),
        ('"0.1.0"', "1", r"line 25: versions.undense: wants a text, not 1"),
        ('"llvm"', "[]", r"line 21: options.target: wants a text, not \[\]"),
        ('"low_rank{rank=4}"', '"lowrank"', r"line 7: sites\[0\].scheme: .*unknown name"),
        ('"scheme": "dense"', '"scheme": "auto"', r"line 14: sites\[1\].scheme: auto is not"),
        ('"name": "down"', '"name": "up"', r"^p.json: sites\[1\].name: 'up' is there twice"),
        ('"format_version": 1', '"format_version": 2', r"is 2, and this undense reads 1"),
        ('"sites": [', '"sites": [7,', r"^p.json: sites\[0\]: is not an object"),
    ],
)
def test_bad_document(old: str, new: str, message: str) -> None:
    text = PLAN.to_json()
    assert old in text
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text.replace(old, new), "p.json")


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_document_of_another_kind(text: str) -> None:
    with pytest.raises(PlanError, match=r"^p.json: the document: is not an object"):
        Plan.from_json(text, "p.json")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json: cannot be read as a plan"):
        read_plan(tmp_path / "none.json")


def test_replay_of_what_was_planned() -> None:
    PLAN.check_replay(sites(), PLAN.calibration, PLAN.seed, PLAN.options, PLAN.versions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration": "ffff0000aaaa"},
            "calibration data differ: the plan was made with 1a2b3c4d… and this run has ffff0000…",
        ),
        ({"calibration": None}, "made with 1a2b3c4d… and this run has none"),
        ({"seed": 4}, "^seeds differ: the plan was made with 3 and this run has 4"),
        (
            {"options": {"target": "ort-cpu", "dtype": "none"}},
            "^values of option target differ: the plan was made with llvm and this run has "
            "ort-cpu; give it the same, make the plan again, or take target out of the plan's "
            "options to carry it out all the same$",
        ),
        (
            {"options": {"target": "llvm", "dtype": "float16"}},
            "^values of option dtype differ: the plan was made with none and this run has float16",
        ),
        ({"current": {"undense": "0.1.0", "numpy": "2.1.0"}}, "^versions of numpy differ"),
        ({"current": {"undense": "0.1.0"}}, "with 2.0.0 and this run has none"),
    ],
)
def test_replay_of_something_else(changes: dict[str, Any], message: str) -> None:
    run = {
        "calibration": PLAN.calibration,
        "seed": PLAN.seed,
        "options": PLAN.options,
        "current": PLAN.versions,
    }
    with pytest.raises(PlanError, match=message):
        PLAN.check_replay(sites(), **{**run, **changes})


def test_what_a_plan_does_not_say_is_not_compared() -> None:
    document = json.loads(PLAN.to_json())
    for name in ("options", "versions"):
        del document[name]
    found = Plan.from_json(json.dumps(document))
    found.check_replay(sites(), PLAN.calibration, PLAN.seed, PLAN.options, PLAN.versions)


@pytest.mark.parametrize(
    ("written", "scheme", "reason"),
    [
        ("low_rank{rank=4}: asked for", "low_rank{rank=4}", "asked for"),
        ("low_rank{ratio=0.25}: asked for", "low_rank{rank=4}", "asked for"),
        (
            "low_rank{rank=4}: auto: 0.14× the bytes",
            "dense",
            "as the plan says, which was made with low_rank{rank=4}",
        ),
        (
            "dense: kept dense as asked",
            "low_rank{rank=4}",
            "as the plan says, which was made with dense",
        ),
        ("auto: 0.14× the bytes", "dense", "auto: 0.14× the bytes"),
        ("the last layer: it stays exact", "dense", "the last layer: it stays exact"),
        ("", "dense", ""),
    ],
)
def test_a_reason_is_about_the_scheme_in_front_of_it(
    written: str, scheme: str, reason: str
) -> None:
    document = json.loads(PLAN.to_json())
    document["sites"][0] |= {"scheme": scheme, "reason": written}
    (found, _) = Plan.from_json(json.dumps(document)).sites
    assert (found.scheme, found.reason) == (scheme, reason)


@pytest.mark.parametrize("text", ["dense ", "dense{}"])
def test_dense_however_it_is_written(text: str) -> None:
    found = Plan.from_json(PLAN.to_json().replace('"scheme": "dense"', f'"scheme": "{text}"'))
    assert [choice.scheme for choice in found.sites] == [choice.scheme for choice in PLAN.sites]


def test_replay_of_what_no_embedding_can_be() -> None:
    table = graph("g (int64[t] i) => (float[t,32] y) { y = Gather(w, i) }", w=normal(64, 32))
    found = find_sites(table)[0]
    plan = Plan((Choice("w", 32, 64, "low_rank{rank=4}"),), None, 0)
    with pytest.raises(PlanError, match=r"^w: low_rank.* cannot gather rows"):
        plan.check_replay(found, None, 0, {})


def test_replay_on_another_model() -> None:
    up, down = sites()
    with pytest.raises(PlanError, match=r"^down: the model has no such site"):
        PLAN.check_replay([up], PLAN.calibration, 3, PLAN.options, PLAN.versions)
    short = Plan(PLAN.sites[:1], PLAN.calibration, 3)
    with pytest.raises(PlanError, match=r"^down: the plan does not say"):
        short.check_replay([up, down], PLAN.calibration, 3, {})


def test_versions_are_those_installed() -> None:
    import numpy as np

    assert versions()["numpy"] == np.__version__
    assert {"undense", "torch", "onnxruntime"} <= set(versions())
