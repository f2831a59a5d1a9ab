"""Times of layers: the table saves the work, and refusals say why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from undense.backend.kernel_times import Layer, Time, kernel_times
from undense.backend.kernel_times import machine as timed_machine
from undense.backend.kernel_times import measure as measuring
from undense.backend.kernel_times.bench import Bench
from undense.backend.kernel_times.table import conditions
from undense.backend.target import Target
from undense.backend.tuning.database import add_records
from undense.backend.tuning.record import Record, processor_name, versions
from undense.passes.decide import with_activations
from undense.passes.errors import (
    FitError,
    InputError,
    MissingDependencyError,
    SchemeError,
    TargetError,
)
from undense.passes.structures import structures
from undense.runtime import hardware

SHAPE = (96, 64)
ORT, LLVM = Target.parse("ort-cpu"), Target.parse("llvm")
SCHEMES = [
    str(with_activations(cls.candidates(*SHAPE)[0], "float")) for cls in structures().values()
]
GATHERS = [
    Layer(*SHAPE, scheme, gathers=True)
    for scheme in ("dense", "int_codes{group=64,activations=float}")
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Found:
    values: dict[str, Any]


@dataclass
class Memory:
    """A table that lasts as long as a test, with keys and values as JSON text."""

    found: dict[str, str] = field(default_factory=dict)

    def get(self, kind: str, key: Mapping[str, Any]) -> Found | None:
        text = self.found.get(json.dumps([kind, key], sort_keys=True))
        return None if text is None else Found(json.loads(text))

    def put(
        self,
        kind: str,
        key: Mapping[str, Any],
        values: Mapping[str, Any],
        arrays: Mapping[str, Any] = {},
    ) -> None:
        self.found[json.dumps([kind, key], sort_keys=True)] = json.dumps(values)


# Times of real kernels


@pytest.mark.parametrize(
    ("target", "schemes"),
    [
        (ORT, ["dense", *SCHEMES]),
        (LLVM, ["dense", "low_rank{rank=4}"]),
        (ORT.with_kernels("tvm"), ["int_codes{group=64,activations=int8}"]),
    ],
    ids=["ort", "llvm", "ort-with-tvm"],
)
def test_layers_are_timed_and_kept(
    target: Target, schemes: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undense.backend.kernel_times.footprint._MOST_COPIES", 2)
    layers = [Layer(*SHAPE, scheme) for scheme in schemes]
    seen: list[tuple[int, int]] = []
    table = Memory()

    def times() -> dict[Layer, dict[int, Time]]:
        return kernel_times(
            dict.fromkeys(layers, (3, 1)),
            target,
            "fast",
            threads=1,
            table=table,
            progress=lambda done, total, text: seen.append((done, total)),
        )

    first = times()
    assert list(first) == layers
    for time in (time for by_rows in first.values() for time in by_rows.values()):
        assert 0 <= time.p10_ms <= time.median_ms <= time.p90_ms
        assert time.repeats >= 3
    assert {tuple(by_rows) for by_rows in first.values()} == {(1, 3)}
    built = len({*layers, layers[0].dense})
    assert seen[-1] == (2 * built, 2 * built)
    assert len(table.found) == 2 * built
    monkeypatch.setattr(Bench, "times", _never)
    assert times() == first


@pytest.mark.parametrize("target", [ORT, LLVM], ids=str)
def test_gathers_are_timed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undense.backend.kernel_times.footprint._MOST_COPIES", 2)
    found = kernel_times(dict.fromkeys(GATHERS, (2,)), target, "fast", threads=1)
    assert all(found[layer][2].repeats >= 3 for layer in GATHERS)


def _never(*_: object) -> None:
    raise AssertionError("something was measured")


# The table


class Scripted:
    """Stands for `Bench.times`: gives each scheme its milliseconds, and notes what was asked."""

    def __init__(self, **milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.asked: list[dict[int, list[str]]] = []

    def __call__(self, by_rows: Mapping[int, Sequence[Layer]]) -> dict[int, dict[Layer, Time]]:
        self.asked.append(
            {rows: [layer.scheme for layer in layers] for rows, layers in by_rows.items()}
        )
        return {
            rows: {layer: self._time(layer) for layer in layers} for rows, layers in by_rows.items()
        }

    def _time(self, layer: Layer) -> Time:
        median = self.milliseconds[layer.scheme.partition("{")[0]]
        return Time(median, 0.9 * median, 1.2 * median, 9)


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    table: Memory,
    schemes: Sequence[str],
    rows: Sequence[int],
    **milliseconds: float,
) -> tuple[dict[tuple[str, int], float], list[dict[int, list[str]]]]:
    """Medians by scheme and rows, and what was asked of the bench."""
    script = Scripted(**milliseconds)
    monkeypatch.setattr(Bench, "times", lambda _self, by_rows: script(by_rows))
    found = kernel_times(
        {Layer(*SHAPE, scheme): rows for scheme in schemes}, ORT, "fast", threads=1, table=table
    )
    medians = {
        (layer.scheme, count): time.median_ms
        for layer, by_rows in found.items()
        for count, time in by_rows.items()
    }
    return medians, script.asked


def test_only_what_is_missing_is_measured_beside_the_dense_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, low, codes = Memory(), "low_rank{rank=4}", "int_codes{activations=int8}"
    found, asked = scripted(monkeypatch, table, [low], [1], dense=4.0, low_rank=2.0)
    assert asked == [{1: ["dense", low]}]
    assert found == {(low, 1): 2.0}
    found, asked = scripted(
        monkeypatch, table, [low, codes], [1, 8], dense=8.0, low_rank=3.0, int_codes=2.0
    )
    assert asked == [{1: ["dense", codes], 8: ["dense", low, codes]}]
    # The machine was half as fast the second time: the codes are put to the pace of the first.
    assert found == {(low, 1): 2.0, (low, 8): 3.0, (codes, 1): 1.0, (codes, 8): 2.0}
    found, asked = scripted(monkeypatch, table, ["dense"], [1, 8])
    assert asked == []
    assert found == {("dense", 1): 4.0, ("dense", 8): 8.0}


def test_a_dense_form_too_fast_to_tell_sets_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    table, low = Memory(), "low_rank{rank=4}"
    scripted(monkeypatch, table, ["dense"], [1], dense=1.0)
    assert scripted(monkeypatch, table, [low], [1], dense=0.0, low_rank=2.0)[0] == {(low, 1): 2.0}


def test_a_dense_time_that_another_process_was_faster_to_keep_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, other = Memory(), Memory()
    scripted(monkeypatch, other, ["dense"], [1], dense=2.0)
    asked = 0

    def get(kind: str, key: Mapping[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return None if asked == 1 else other.get(kind, key)

    monkeypatch.setattr(mine, "get", get)
    found, _ = scripted(monkeypatch, mine, ["dense"], [1], dense=4.0)
    assert found == {("dense", 1): 2.0}


def test_conditions_tell_targets_forms_and_threads_apart() -> None:
    seen = [
        conditions(ORT, "fast", 1),
        conditions(ORT, "portable", 1),
        conditions(ORT, "fast", 2),
        conditions(ORT.with_kernels("tvm"), "fast", 1),
        conditions(LLVM, "fast", 1),
        conditions(Target.parse("llvm -mcpu=x86-64-v3"), "fast", 1),
        conditions(replace(LLVM, mcpu="x86-64-v3", tuned=False), "fast", 1),
    ]
    assert len({json.dumps(each, sort_keys=True) for each in seen}) == len(seen)
    assert seen[4] == conditions(LLVM, "fast", 1)
    assert seen[4]["packing"]
    assert seen[0]["machine"] == hardware.machine()["cpu"]


class Driver:
    """NVIDIA's driver with one GPU."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return flags

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        assert length == len(name)
        assert device.value == 0
        name.value = b"NVIDIA H100"
        return self.status


def test_a_gpu_is_named_behind_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, target = hardware.machine()["cpu"], Target.parse("ort-cuda")
    monkeypatch.setattr(timed_machine.ctypes, "CDLL", lambda name: Driver(0))
    assert conditions(target, "cuda", 1)["machine"] == f"{cpu}, NVIDIA H100"
    monkeypatch.setattr(timed_machine.ctypes, "CDLL", lambda name: Driver(1))
    with pytest.raises(TargetError, match="driver does not tell the name of the GPU"):
        conditions(target, "cuda", 1)


def test_tuning_makes_times_old() -> None:
    stock = conditions(ORT, "fast", 1)
    for target in (LLVM, ORT.with_kernels("tvm")):
        before = conditions(target, "fast", 1)
        add_records(
            [
                Record(
                    kind=str(target),
                    out_features=96,
                    in_features=64,
                    rows=1,
                    fields={"chains": 2},
                    processor=processor_name(LLVM),
                    machine="",
                    median_us=1.0,
                    default_us=2.0,
                    spread=0.1,
                    threads=1,
                    versions=versions("cpu"),
                    date="2026-01-01",
                )
            ]
        )
        after = conditions(target, "fast", 1)
        assert {name for name in before if before[name] != after[name]} == {"tuning"}
    assert conditions(ORT, "fast", 1) == stock


# Refusals


def absent(*_: object) -> None:
    raise TargetError("there is no GPU here: install the driver")


@pytest.mark.parametrize("text", ["cuda", "ort-cuda"])
def test_a_missing_gpu_is_named_at_the_call(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undense.runtime.cuda_runtime.cuda_device", absent)
    monkeypatch.setattr(
        timed_machine.cuda_provider, "obstacle", lambda: TargetError("there is no GPU here")
    )
    target = Target.parse(text)
    with pytest.raises(TargetError, match=r"cannot be measured on this machine: there is no GPU"):
        kernel_times({Layer(*SHAPE, "dense"): [1]}, target, target.form(portable=False))


def test_a_foreign_processor_is_named_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_machine, "cpu_flags", lambda: frozenset(["avx2", "fma"]))
    target = Target.parse("llvm -mcpu=skylake-avx512")
    with pytest.raises(TargetError, match=r"cannot be measured .* needs avx512bw, .* lacks"):
        kernel_times({Layer(*SHAPE, "dense"): [1]}, target, "fast")


def test_a_missing_engine_is_named_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_machine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"cannot be measured .* pip install"):
        kernel_times({Layer(*SHAPE, "dense"): [1]}, ORT, "fast")


@pytest.mark.parametrize(
    ("scheme", "rows", "threads", "error", "message"),
    [
        ("dense", [], None, InputError, "product 96x64 dense: rows .*: name the numbers of rows"),
        ("dense", [4, 0], None, InputError, "of 1 or more"),
        ("dense", [1], 0, InputError, "threads must be at least 1, got 0"),
        ("auto", [1], None, SchemeError, "product 96x64 auto: only a resolved structure"),
        ("int_codes", [1], None, SchemeError, "resolve it for target ort-cpu, .*activations=int8"),
        ("low_rank{rank=65}", [1], None, FitError, "product 96x64 .*rank 65 is more than"),
    ],
)
def test_refused_before_anything_is_measured(
    scheme: str,
    rows: list[int],
    threads: int | None,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "check_measurable", _never)
    with pytest.raises(error, match=message):
        kernel_times({Layer(*SHAPE, scheme): rows}, ORT, "fast", threads=threads)


def test_what_no_plan_replaces_is_refused() -> None:
    with pytest.raises(SchemeError, match=r"gather 96x64 .*: low_rank cannot hold an embedding"):
        kernel_times({Layer(*SHAPE, "low_rank{rank=4}", gathers=True): [1]}, ORT, "fast")
    with pytest.raises(InputError, match=r"product 8x8 .*: no plan replaces it \(too small to pay"):
        kernel_times({Layer(8, 8, "low_rank{rank=4}"): [1]}, ORT, "fast")


def test_types_that_do_not_run_are_refused() -> None:
    with pytest.raises(InputError, match="dtype 'int8' is not timed"):
        Layer(*SHAPE, "dense", dtype="int8")
    with pytest.raises(TargetError, match="does not compute in bfloat16"):
        kernel_times({Layer(*SHAPE, "dense", dtype="bfloat16"): [1]}, LLVM, "fast")
