"""The benchmark scripts run; what they measure is theirs to say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from undense.passes.scheme import parse_scheme
from undense.passes.structures.base import Structure

from benchmarks import demo, efficientnet, minilm, smollm2
from benchmarks.script import run

SCRIPTS = (minilm, smollm2, efficientnet)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_schemes_are_of_this_version(script: object) -> None:
    for text in script.SCHEMES:  # type: ignore[attr-defined]
        assert isinstance(parse_scheme(text), Structure)


@pytest.mark.slow
def test_a_quick_run_writes_the_row_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(efficientnet.EfficientNetLite0, ["--quick", "--only", "auto*"]) == 0
    printed = capsys.readouterr()
    (path,) = re.findall(r"rows in (\S+)", printed.err)
    (row,) = json.loads(Path(path).read_text())["rows"]
    assert row["name"] == "auto, calibrated"
    assert row["bytes"]["ort"] < row["bytes"]["dense"] / 2
    assert row["metrics"]["tvm"]["top1_agreement"] > 0.8
    assert set(row["milliseconds"]["1x224x224"]) == {"dense", "ort", "tvm"}


@pytest.mark.slow
def test_the_demo_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LINES", 8)
    monkeypatch.setattr(demo, "BUILDS", (("dense", "ort-cpu"), ("auto", "llvm")))
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("holds") == 2
    assert "FAILS" not in printed
