"""Rows that survive interruption, and the README's tables that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from undense.passes.errors import InputError

from benchmarks import results, table
from benchmarks.results import Results
from benchmarks.workbench import Variant


def _row(scheme: str, calibrated: bool = False) -> dict[str, Any]:
    timing = {"median_ms": 11.234, "p10_ms": 10.9, "p90_ms": 12.444}
    return {
        "scheme": scheme,
        "rules": [],
        "calibrated": calibrated,
        "bytes": {"dense": 90_000_000, "ort": 23_456_789, "tvm": 24_000_000},
        "metrics": {
            "ort": {"wordsim353_spearman": 0.7289, "lee50_pearson": 0.6564, "output_error": 0.0123},
            "tvm": {"wordsim353_spearman": 0.73, "lee50_pearson": 0.66, "output_error": 0.01},
        },
        "milliseconds": {"1x128": {"dense": timing, "ort": timing, "tvm": timing}},
    }


def test_rows_are_kept_in_order_and_old_ones_dropped(tmp_path: Path) -> None:
    first = Results("minilm", 2, tmp_path)
    for name in ("b", "gone", "a"):
        first.put(name, _row(name), ["a", "b", "gone"])
    second = Results("minilm", 2, tmp_path)
    second.put("c", _row("c"), ["a", "b", "c"])
    document = json.loads((tmp_path / "minilm.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["minilm.json"]


def test_a_row_of_other_sources_or_threads_is_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Results("minilm", 2, tmp_path).put("a", _row("a"), ["a"])
    assert Results("minilm", 2, tmp_path).current("a")
    assert not Results("minilm", 2, tmp_path).current("b")
    assert not Results("minilm", 1, tmp_path).current("a")
    monkeypatch.setattr(results, "source_hash", lambda: "other")
    assert not Results("minilm", 2, tmp_path).current("a")


def test_a_table_holds_what_the_rows_hold(tmp_path: Path) -> None:
    kept = Results("minilm", 2, tmp_path)
    order = ["dense", "codes"]
    kept.put("dense", _row("dense"), order)
    kept.put("codes", _row("int_codes{bits=4,group=64}", calibrated=True), order)
    lines = table.render(tmp_path).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert len({len(row) for row in cells}) == 1
    assert cells[2][:4] == ["`dense`", "", "23.5", "24.0"]
    assert cells[3][:2] == ["`int_codes{bits=4,group=64}`", "calibrated"]
    assert cells[3][4:7] == ["0.729 / 0.730", "0.656 / 0.660", "1.2 % / 1.0 %"]
    assert cells[3][7] == "11.2 (10.9–12.4)"
    assert lines[-1].startswith("`python -m benchmarks.minilm` on ")


def test_a_brief_table_leaves_out_what_is_in_the_full_one(tmp_path: Path) -> None:
    kept = Results("minilm", 2, tmp_path)
    order = ["dense", "free", "codes"]
    for name in order:
        kept.put(name, _row("dense" if name == "dense" else "auto", name == "codes"), order)
    lines = table.render(tmp_path, brief=True).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[3] == ["`auto`", "23.5", "24.0", "0.729 / 0.730", "1.2 % / 1.0 %", *["11.2"] * 3]
    assert len(cells[0]) == len(cells[1]) == len(cells[3])


def test_only_what_is_between_the_markers_changes() -> None:
    readme = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.updated(readme, "new")
    assert once == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    assert table.updated(once, "new") == once


@pytest.mark.parametrize("readme", ["", table.BEGIN, f"{table.END}\n{table.BEGIN}"])
def test_missing_markers_are_refused(readme: str) -> None:
    with pytest.raises(InputError, match="markers"):
        table.updated(readme, "new")


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        table.render(tmp_path)


def test_names_of_variants_tell_them_apart() -> None:
    variants = [
        Variant("auto"),
        Variant("auto", calibrated=True),
        Variant("auto", rules=(("head", "int_codes"),)),
    ]
    assert len({variant.name for variant in variants}) == 3
