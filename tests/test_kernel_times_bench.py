"""Layers are compiled side by side, loaded some at a time, and brought to one pace."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Executor

import pytest
from undense.backend.kernel_times import Layer, Time, bench, kernel_times, measure
from undense.backend.kernel_times import footprint as weights
from undense.backend.kernel_times.layer import at_pace
from undense.backend.target import Target
from undense.passes.errors import LoweringError
from undense.passes.progress import silent

DENSE = Layer(256, 128, "dense")
CODED = [Layer(256, 128, f"int_codes{{bits={bits},activations=float}}") for bits in (8, 4, 3)]


def test_what_is_loaded_at_a_time_is_bounded_and_each_layer_loaded_once(monkeypatch):
    held = {DENSE: 400, CODED[0]: 80, CODED[1]: 20, CODED[2]: 10}
    monkeypatch.setattr(bench, "_LOADED_BYTES", 100)
    assert list(bench._groups(held)) == [[DENSE, *CODED[:2]], [DENSE, CODED[2]]]
    monkeypatch.setattr(bench, "_LOADED_BYTES", 1)
    assert list(bench._groups(held)) == [[DENSE, layer] for layer in CODED]
    assert list(bench._groups({DENSE: 400})) == [[DENSE]]


@pytest.mark.parametrize(("target", "computed"), [("llvm", 0), ("ort-cpu", 4 * 16 * (256 + 128))])
def test_sessions_hold_weights_and_those_of_onnx_runtime_what_they_compute(target, computed):
    timing = bench.Bench(Target.parse(target), "fast", 1, bench.Steps(silent, 1))
    assert timing._held(DENSE, 3, 16) == 3 * 4 * 256 * 128 + computed


@pytest.mark.parametrize(
    ("target", "footprint", "evicted"),
    [("llvm", None, [2 * 2**20]), ("ort-cpu", None, [2 * 2**20]), ("llvm", 2**20, []),
     ("cuda", None, [])],
)  # fmt: skip
def test_weights_of_large_models_are_driven_out_of_the_caches_of_cpus(
    monkeypatch, target, footprint, evicted
):
    found: list[int] = []
    monkeypatch.setattr(weights, "cache_bytes", lambda _: 2**20)
    monkeypatch.setattr(weights, "reads", lambda size: lambda: found.append(size))
    weights.between(footprint, Target.parse(target))()
    assert found == evicted


def test_later_groups_are_brought_to_the_pace_of_the_first():
    first = {DENSE: Time(2.0, 1.0, 3.0, 5), CODED[0]: Time(1.0, 1.0, 1.0, 5)}
    second = {DENSE: Time(4.0, 4.0, 4.0, 5), CODED[1]: Time(1.0, 0.8, 1.2, 5)}
    found = at_pace(first, DENSE, None)
    found |= at_pace(second, DENSE, found[DENSE])
    assert found[DENSE].median_ms == 2.0
    assert found[CODED[0]].median_ms == 1.0
    assert found[CODED[1]] == Time(0.5, 0.4, 0.6, 5)


@pytest.mark.parametrize("loaded", [1, 2**30])
def test_however_they_are_loaded_all_are_timed(monkeypatch, loaded):
    monkeypatch.setattr(bench, "_LOADED_BYTES", loaded)
    layers = dict.fromkeys([DENSE, *CODED[:2]], (1, 8))
    found = kernel_times(layers, Target.parse("ort-cpu"), "fast", threads=1)
    assert set(found) == {DENSE, *CODED[:2]}
    assert all(times[8].median_ms > 0 for times in found.values())


@pytest.mark.parametrize("loaded", [1, 2**30])
def test_layers_with_rows_of_their_own_are_compiled_once_and_told_as_one_work(monkeypatch, loaded):
    compiled: list[Layer] = []
    turns: list[tuple[int, list[Layer]]] = []
    told: list[tuple[int, int]] = []

    def compile_layer(layer, *what, empty, real=bench._compile):
        real(layer, *what, empty=empty)
        compiled.extend([] if empty else [layer])

    def timed(self, sessions, copies, rows, seconds):
        turns.append((rows, list(copies)))
        return {layer: Time(1.0, 1.0, 1.0, 3) for layer in copies}

    monkeypatch.setattr(bench, "_LOADED_BYTES", loaded)
    monkeypatch.setattr(bench, "_compile", compile_layer)
    monkeypatch.setattr(bench.Bench, "_timed", timed)
    other = Layer(64, 128, "dense")
    layers = {DENSE: [2, 5], CODED[0]: [5, 9], CODED[1]: [9], other: [3]}
    found = kernel_times(
        layers,
        Target.parse("ort-cpu"),
        "fast",
        threads=1,
        progress=lambda done, total, _: told.append((done, total)),
    )
    assert {layer: list(times) for layer, times in found.items()} == layers
    assert sorted(map(str, compiled)) == sorted(map(str, layers))
    assert told == sorted(told)
    assert {total for _, total in told} == {told[-1][0]} == {2 * len(layers)}
    together = [(9, [DENSE, *CODED[:2]])]
    apart = [(9, [DENSE, CODED[0]]), (9, [DENSE, CODED[1]])]
    wanted = [(2, [DENSE]), (3, [other]), (5, [DENSE, CODED[0]])]
    key = str
    assert sorted(turns, key=key) == sorted(wanted + (apart if loaded == 1 else together), key=key)


def test_other_processes_compile_where_there_is_enough_of_it(monkeypatch):
    made: list[bench.Bench] = []
    monkeypatch.setattr(measure, "Bench", lambda *a: made.append(bench.Bench(*a)) or made[-1])
    monkeypatch.setattr(measure, "_COMPILE_COST", 1e12)
    target = Target.parse("llvm")
    layers = dict.fromkeys([DENSE, CODED[0]], (1,))
    found = kernel_times(layers, target, "fast", threads=1)
    assert all(times[1].median_ms > 0 for times in found.values())
    kernel_times(layers, Target.parse("ort-cpu"), "fast", threads=1)
    assert [one.executor is None for one in made] == [False, True]


def test_times_of_lookups_that_are_nothing_tell_no_pace():
    nothing, little = Time(0.0, 0.0, 0.0, 5), Time(0.0004, 0.0, 0.001, 5)
    other = Time(0.02, 0.01, 0.03, 5)
    for before, now in ((nothing, little), (little, nothing), (little, Time(0.004, 0, 0, 5))):
        assert at_pace({DENSE: now, CODED[0]: other}, DENSE, before) == {CODED[0]: other}


class Broken(Executor):
    """Whose processes the system has ended."""

    def submit(self, *_args, **_options):
        raise BrokenExecutor("ended")


def test_a_process_that_was_ended_while_it_compiled_is_told():
    timing = bench.Bench(Target.parse("llvm"), "fast", 1, bench.Steps(silent, 1), executor=Broken())
    with pytest.raises(LoweringError, match=r"256x128 dense: a process .* memory runs out"):
        timing.times({1: [DENSE]})
