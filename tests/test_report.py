"""The report as a table, as JSON and as a page; text from a model is only ever text."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from undense.runtime.report import (
    print_fields,
    print_report,
    print_verification,
    report_json,
)

HOSTILE = "<script>alert('x')</script>&[red]$name"


def site(name: str, error: float | None, **changes: object) -> dict[str, object]:
    return {
        "name": name,
        "in_features": 384,
        "out_features": 1536,
        "users": 1,
        "scheme": "int_codes{bits=8,group=128}",
        "bits_per_weight": 8.125,
        "relative_error": error,
        "reason": "auto",
        **changes,
    }


REPORT = {
    "sites": [site("layer.0.query", 0.0123456789012345), site(HOSTILE, 0.5, scheme="dense")],
    "refusals": [{"name": "embedding<1>", "reason": "too small to pay: 12×8"}],
    "bytes": {"before": 4000, "after": 1000, "folder": 1500},
    "notes": ["data-free: no calibration data was given"],
    "warnings": ["slower than dense"],
    "error_measure": "weights",
    "activation_rounding_effect": 0.006,
}
BARE = {"sites": [], "refusals": [], "bytes": {"before": 7, "after": None}}


def test_plain_table_is_whole(capsys):
    print_report(REPORT)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "site in out users scheme bits/weight error reason"
    assert " ".join(lines[1].split()) == (
        "layer.0.query 384 1536 1 int_codes{bits=8,group=128} 8.125 1.23% auto"
    )
    assert lines[2].startswith(HOSTILE)
    assert lines[3:] == [
        "not replaced: embedding<1>: too small to pay: 12×8",
        "bytes of weights: 4,000 before, 1,000 after (25.0%)",
        "the artifact's folder: 1,500 bytes",
        "error is relative, of each layer's weights",
        "rounding activations to int8 (accuracy_level 4) changes the outputs by 0.60%",
        "note: data-free: no calibration data was given",
        "warning: slower than dense",
    ]


def test_a_report_of_nothing(capsys):
    print_report(BARE)
    assert capsys.readouterr().out == "bytes of weights: 7\n"


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")


def test_rich_table_shows_the_same_text(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    print_report(REPORT)
    out = capsys.readouterr().out
    for text in ("layer.0.query", HOSTILE, "8.125", "1.23%", "int_codes{bits=8,group=128}"):
        assert text in out
    assert "─" in out


def test_without_rich_the_table_is_plain(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    print_report(REPORT)
    out = capsys.readouterr().out
    assert out.startswith("site ")
    assert "─" not in out


def test_print_fields_flattens(capsys):
    values = {
        "holds": True,
        "error": 1.23456e-7,
        "none": None,
        "machine": {"cores": 2, "flags": ["avx2", "fma"], "traps": [{"node": "a"}, {"node": "b"}]},
    }
    print_fields(values)
    assert capsys.readouterr().out.splitlines() == [
        "holds                 yes",
        "error                 1.235e-07",
        "none                  –",
        "machine.cores         2",
        "machine.flags         avx2, fma",
        "machine.traps.0.node  a",
        "machine.traps.1.node  b",
    ]


def test_json_keeps_every_digit_and_is_valid():
    text = report_json(
        {**REPORT, "extra": [np.float32(0.5), float("nan"), float("inf"), np.int64(3)]}
    )
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["sites"] == REPORT["sites"]
    assert read["extra"] == [0.5, None, None, 3]


def test_verification_shows_what_is_nearest_to_its_tolerance(capsys):
    outputs = {
        f"y{index}": {
            "holds": True,
            "execution_error": index * 1e-8,
            "tolerance": 1e-6,
            "approximation_error": 0.01,
        }
        for index in range(20)
    }
    outputs["lost"] = {**outputs["y3"], "holds": False, "execution_error": None}
    print_verification({"holds": False, "engine": "ort", "samples": 2, "outputs": outputs})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "lost – 1e-06 0.01 no"
    assert lines[2] == "y19 1.9e-07 1e-06 0.01 yes"
    assert lines[-2:] == [
        "and 9 outputs that are farther from their tolerance",
        "does not hold: ort, stored samples: 2",
    ]
