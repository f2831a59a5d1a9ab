"""The database of measurements: what is written comes back, nothing is lost, damage is said."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from undense.backend.package import check_toolchain
from undense.backend.target import Target
from undense.backend.tuning import choose
from undense.backend.tuning.choose import choose_records, families
from undense.backend.tuning.database import add_records, database_path, read_records
from undense.backend.tuning.record import (
    FunctionRecord,
    Record,
    processor_name,
    record_from_json,
    versions,
)
from undense.passes.errors import TuningError

RECORD = Record(
    kind="dense",
    out_features=64,
    in_features=32,
    rows=8,
    processor="x86-64-v3+avx2+fma+f16c",
    machine="a machine",
    fields={"panels": (4, 2), "unroll": 4},
    median_us=10.0,
    default_us=12.5,
    spread=0.02,
    threads=2,
    versions=versions("cpu"),
    date="2026-01-01",
)


FUNCTION = FunctionRecord(
    name="cumsum",
    function="00ff",
    trace=[[], []],
    **{
        name: getattr(RECORD, name)
        for name in (
            "processor",
            "machine",
            "median_us",
            "default_us",
            "spread",
            "threads",
            "versions",
            "date",
        )
    },
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))


def test_records_come_back_as_they_were() -> None:
    assert read_records() == []
    add_records([RECORD, FUNCTION])
    assert read_records() == [FUNCTION, RECORD]


def test_a_newer_record_replaces_the_one_of_the_same_kernel_and_processor() -> None:
    newer = dataclasses.replace(RECORD, fields={}, median_us=9.0)
    other = dataclasses.replace(RECORD, processor="znver4")
    add_records([RECORD, other])
    add_records([newer])
    assert read_records() == [newer, other]


def test_two_processes_lose_nothing() -> None:
    code = (
        "import sys, dataclasses; sys.path.insert(0, 'tests')\n"
        "from undense.backend.tuning.database import add_records\n"
        "from test_tuning_database import RECORD\n"
        "for rows in range(1, 21):\n"
        "    add_records([dataclasses.replace(RECORD, rows=rows, kind=sys.argv[1])])\n"
    )
    root = Path(__file__).parent.parent
    processes = [subprocess.Popen([sys.executable, "-c", code, name], cwd=root) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(read_records()) == 40
    assert sorted(item.name for item in database_path().parent.iterdir()) == [
        "tuning.json",
        "tuning.lock",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "records": [{}]}',
        '{"format": 1, "records": 3}',
    ],
)
def test_a_damaged_file_is_one_sentence_and_stays(text: str) -> None:
    database_path().parent.mkdir()
    database_path().write_text(text)
    for call in (read_records, lambda: add_records([RECORD])):
        with pytest.raises(TuningError, match=r"tuning\.json is damaged \(.+\): delete it"):
            call()
    assert database_path().read_text() == text


def test_a_newer_format_is_not_called_damage() -> None:
    database_path().parent.mkdir()
    database_path().write_text('{"format": 3, "records": []}')
    with pytest.raises(TuningError, match="has format 3 and this undense reads 2"):
        read_records()


def test_records_of_format_1_are_read() -> None:
    add_records([RECORD])
    document = json.loads(database_path().read_text())
    (record,) = document["records"]
    record["cpu"] = record.pop("processor")
    del record["machine"]
    database_path().write_text(json.dumps({"format": 1, "records": [record]}))
    assert read_records() == [dataclasses.replace(RECORD, machine="")]


def test_a_record_with_a_wrong_field_is_named() -> None:
    add_records([RECORD])
    document = json.loads(database_path().read_text())
    document["records"][0]["rows"] = "many"
    database_path().write_text(json.dumps(document))
    with pytest.raises(TuningError, match="rows of a record is 'many'"):
        read_records()


def test_records_of_functions_are_for_their_processor_and_versions() -> None:
    target = Target.parse("llvm -mcpu=x86-64-v3")
    mine = dataclasses.replace(FUNCTION, processor=processor_name(target))
    no_better = dataclasses.replace(mine, function="01", trace=None)
    old = dataclasses.replace(mine, function="02", versions={**versions("cpu"), "apache-tvm": "0"})
    foreign = dataclasses.replace(mine, function="03", processor="another")
    add_records([mine, no_better, old, foreign])
    chosen = choose_records(target)
    assert chosen.traces == {"00ff": [[], []]}
    (asked, unknown, without) = chosen.report([], ["00ff", "01", "02"])["functions"]
    assert asked == {"function": "00ff", "record": mine.to_json()}
    assert unknown["record"]["trace"] is None
    assert without["record"] is None


def test_the_user_s_records_win_over_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.parse("llvm -mcpu=x86-64-v3")
    shipped = dataclasses.replace(RECORD, processor="another", fields={"unroll": 1})
    foreign = dataclasses.replace(shipped, rows=1)
    family = choose.Family("some", frozenset({"avx2"}), True, "a machine", (shipped, foreign))
    monkeypatch.setattr(choose, "families", lambda: (family,))
    mine = dataclasses.replace(RECORD, processor=processor_name(target))
    old = dataclasses.replace(mine, rows=32, versions={**versions("cpu"), "schedules": "0"})
    add_records([mine, old, dataclasses.replace(RECORD, processor="another", rows=128)])
    chosen = choose_records(target)
    assert {key[-1]: source for key, (_, source) in chosen.records.items()} == {
        1: "shipped",
        8: "measured here",
    }
    report = chosen.report([("dense", 64, 32), ("dense", 1, 1)])
    assert (report["tuned"], len(report["kernels"])) == (1, 2)
    assert [record["fields"] for record in report["records"]] == [{"unroll": 1}, mine.fields]


def test_the_doctor_names_the_database_and_the_reason_of_a_pin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from undense.backend import doctor

    add_records([dataclasses.replace(RECORD, processor=processor_name(Target("tvm"))), RECORD])
    tuning = doctor.examine_machine()["tuning"]
    assert tuning["database"] == str(database_path())
    assert (tuning["records"], tuning["measured_here"]) == (2, 1)
    database_path().write_text("{")
    version = doctor._version
    later = {"apache-tvm-ffi": "0.1.15"}
    monkeypatch.setattr(doctor, "_version", lambda name: later.get(name) or version(name))
    pin, damage = doctor.examine_machine()["problems"]
    assert "crash in Schedule.tensorize" in pin
    assert pin.endswith("pip install apache-tvm-ffi==0.1.14.post1")
    assert "tuning.json is damaged" in damage


def test_shipped_records_are_of_known_kernels_and_measured_ones_name_a_machine() -> None:
    assert {family.name for family in families()} == {
        *("AVX2", "AVX-512", "AVX-512 with VNNI"),
        *("sm_80", "sm_90"),
    }
    for family in families():
        assert family.measured == (family.machine is not None)
        assert family.measured or not family.records


def test_measured_records_become_shipped_ones() -> None:
    from benchmarks.tuned_defaults import filled

    newest, _, older, *_ = families()
    own_best = dataclasses.replace(RECORD, rows=1, fields={})
    vnni = dataclasses.replace(RECORD, processor="znver4+" + "+".join(sorted(newest.flags)))
    found = filled(older, [RECORD, own_best, vnni])
    assert (found["measured"], found["machine"]) == (True, "a machine")
    assert [record_from_json(record) for record in found["records"]] == [RECORD]
    assert filled(older, [vnni])["machine"] == older.machine


def test_what_cannot_be_read_is_told_before_anything_long_is_done() -> None:
    database_path().mkdir(parents=True)
    with pytest.raises(TuningError, match=r"tuning\.json cannot be read \(.+\); make it readable"):
        check_toolchain(Target.parse("llvm"))
    check_toolchain(dataclasses.replace(Target.parse("llvm"), tuned=False))
    check_toolchain(Target.parse("ort-cpu"))
