"""Timings are interleaved, have their spread beside them, and say on what they were taken."""

from __future__ import annotations

import json
import os
import time
from functools import partial

import numpy as np
import pytest
import undense
from artifacts import make_artifact, sample
from undense.passes.errors import InputError
from undense.runtime.bench import bench, interleaved, machine
from undense.runtime.hardware import cpu_flags, usable_cores


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("bench") / "a", "ort").path


def test_callables_take_turns_and_change_their_order():
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.sleep(0.015)

    found = interleaved({name: partial(call, name) for name in "ab"}, repeats=7, min_time=0)
    # each: one call and three counts to warm up; a turn is two untimed calls, which last 20 ms, and
    # up to five samples
    assert "".join(calls) == "aaaabbbb" + 7 * "a" + 7 * "b" + 4 * "b" + 4 * "a"
    assert (found["a"].samples, found["a"].calls) == (7, 1)


def test_a_sample_is_divided_by_its_calls():
    found = interleaved({"nap": lambda: time.sleep(0.001)}, repeats=3, min_time=0.008)["nap"]
    assert found.calls >= 4
    assert 1 <= found.p10_ms <= found.median_ms <= found.p90_ms


def test_the_longer_call_takes_longer():
    found = interleaved(
        {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, repeats=3
    )
    assert found["short"].median_ms < found["long"].median_ms


def test_repeats_must_be_positive():
    with pytest.raises(InputError, match="repeats must be at least 1, got 0"):
        interleaved({}, repeats=0)


def test_bench_against_a_session(path):
    one = undense.load(path, num_threads=1)
    found = bench(one, undense.load(path, num_threads=1), sample(), repeats=3, min_time=0)
    assert set(found["artifact"]) >= {"median_ms", "p10_ms", "p90_ms"}
    assert found["artifact"]["median_ms"] > 0
    assert found["speedup"] == found["against"]["median_ms"] / found["artifact"]["median_ms"]
    assert found["threads"] == 1
    assert found["engine"] == "ort"
    assert found["inputs"] == {"x": [3, 8], "ids": [3]}
    assert json.loads(json.dumps(found)) == found


def test_bench_against_a_function_and_alone(path):
    session = undense.load(path)
    seen = []
    found = bench(session, lambda inputs: seen.append(sorted(inputs)), sample(), repeats=1)
    assert seen[0] == ["ids", "x"]
    assert found["against"]["median_ms"] > 0
    alone = bench(session, None, sample(), repeats=1, min_time=0)
    assert alone["against"] is None
    assert alone["speedup"] is None


def test_unfair_or_unfit_comparisons_are_refused(path):
    one, two = (undense.load(path, num_threads=number) for number in (1, 2))
    with pytest.raises(InputError, match="runs on 1 threads and what it is compared with on 2"):
        bench(one, two, sample())
    with pytest.raises(InputError, match="ids: not given"):
        bench(one, None, {"x": np.ones((1, 8), np.float32)})


def test_the_machine():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert 1 <= found["cores"] == usable_cores() <= len(os.sched_getaffinity(0))
    flags = cpu_flags()
    assert flags is not None
    assert set(found["flags"]) <= flags


def test_cores_are_those_of_the_process():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
