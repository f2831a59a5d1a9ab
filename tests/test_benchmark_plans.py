"""Plans beside uniform schemes: where `auto` loses is found, and said on the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from undense.passes.errors import InputError

from benchmarks import plan_table, plans
from benchmarks.plan_cost import PeakMemory


def _costs(distortion: float) -> dict[str, Any]:
    return {
        "size_ratio": 0.25,
        "latency_ratio": {"1": 0.5},
        "effective_bits": 8.0,
        "distortion": distortion,
        "additivity": 1.0,
    }


def _document(at_size: dict[str, Any]) -> dict[str, Any]:
    auto = {"size": at_size, "time at batch 1": {"refused": "latency_ratio=0.5 cannot be kept"}}
    return {
        "machine": {"cpu": "a CPU", "cores": 2},
        "threads": 2,
        "batches": [1],
        "distortion_measure": "kl",
        "model_bytes": 10**8,
        "plan_seconds": 60.0,
        "planning": {"seconds": 100.4, "bytes_above_import": 2 * 10**8, "bytes_of_workers": 10**9},
        "auto": {
            **_costs(0.009),
            "budget": "max_drop=0.01",
            "prediction": {
                "options": 20, "median_ratio": 1.0, "p25_ratio": 0.9, "p75_ratio": 1.1,
            },
        },
        "pareto": [_costs(0.001)],
        "compiled": {
            "size_ratio": 0.251,
            "latency": {"1": {"ratio": 0.55}},
            "approximation_error": 0.1,
            "execution_error": 1e-6,
            "holds": True,
        },
        "uniform": [{"scheme": "int_codes{bits=8}", "uniform": _costs(0.02), "auto": auto}],
    }  # fmt: skip


def test_a_scheme_that_is_better_by_more_than_noise_is_a_loss():
    refused = ["int_codes{bits=8} at equal time at batch 1"]
    assert list(plans.losses(_document(_costs(0.0209)))) == refused
    found = list(plans.losses(_document(_costs(0.0211))))
    assert found == ["int_codes{bits=8} at equal size", *refused]


def test_the_page_holds_what_was_measured(tmp_path: Path):
    (tmp_path / "plans_minilm.json").write_text(json.dumps(_document(_costs(0.01))))
    page = plan_table.render(tmp_path)
    assert "## MiniLM-L6 (encoder)" in page
    assert "KL divergence of the logits" in page
    assert (
        "`--plan-time 60`, took 100 s and 200 MB beyond imports (2.0 times the model's 100 MB)"
        in page
    )
    assert "0.50 predicted and 0.55 measured at 1" in page
    row = "| `int_codes{bits=8}` | 25.0% | 0.50 | 0.02 | 0.01 (0.50) | refused |"
    assert row in page.splitlines()
    assert "`auto` loses at: int_codes{bits=8} at equal time at batch 1." in page


def test_rows_of_other_sources_are_told(tmp_path: Path):
    document = {**_document(_costs(0.01)), "sources": "new"}
    path = tmp_path / "plans_minilm.json"
    for sources, told in (("new", False), ("old", True)):
        rows = [{**row, "sources": sources} for row in document["uniform"]]
        path.write_text(json.dumps({**document, "uniform": rows}))
        assert ("1 of 1 of these rows are of other sources" in plan_table.render(tmp_path)) == told


def test_siblings_in_one_site_stand_behind_their_model(tmp_path: Path):
    (tmp_path / "plans_minilm.json").write_text(json.dumps(_document(_costs(0.01))))
    separate = {"bytes": 2e7, "approximation_error": 0.1, "milliseconds": {"1": {"median_ms": 2.0}}}
    fused = {"bytes": 1.9e7, "approximation_error": 0.09, "milliseconds": {"1": {"median_ms": 1.5}}}
    rows = [{"scheme": "auto", "separate": separate, "fused": fused}]
    document = {"command": "python -m benchmarks.siblings minilm", "batches": [1], "rows": rows}
    (tmp_path / "siblings_minilm.json").write_text(json.dumps(document))
    page = plan_table.render(tmp_path)
    assert "| `auto` | 20.0 | 19.0 | 0.1 | 0.09 | 0.75 |" in page.splitlines()


def test_what_is_looked_up_keeps_codes_under_other_schemes(tmp_path: Path):
    weights = {"table": np.ones((60, 40), np.float32), "w": np.ones((40, 40), np.float32)}
    model = graph(
        "g (int64[t] ids) => (float[t,40] y) { h = Gather(table, ids)  y = MatMul(h, w) }",
        **weights,
    )
    ir.save(model, tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    assert plans.rules_of(path, "int_codes{bits=4}") == "int_codes{bits=4}"
    for scheme in ("low_rank{ratio=0.5}", "int_codes{bits=4}+residual{rank=16}"):
        table = {"match": "table", "scheme": "int_codes{bits=8}"}
        assert plans.rules_of(path, scheme) == [table, {"match": "*", "scheme": scheme}]


def test_without_results_there_is_no_page(tmp_path: Path):
    with pytest.raises(InputError, match="holds no plans"):
        plan_table.render(tmp_path)


def test_memory_that_is_taken_is_seen():
    with PeakMemory() as memory:
        held = np.ones(5 * 10**7)
        memory._over.wait(0.5)
    assert memory.own >= 0.9 * held.nbytes


class Tiny:
    """A model under test of one linear."""

    def __init__(self, quick: bool) -> None:
        del quick

    def capture(self) -> ir.Model:
        text = "g (float[t,64] x) => (float[t,64] y) { y = MatMul(x, w) }"
        return graph(text, w=np.ones((64, 64), np.float32))

    def calibration(self) -> list[dict[str, np.ndarray]]:
        return [{"x": np.ones((8, 64), np.float32)}]


@pytest.mark.parametrize(
    ("options", "planned", "rows"),
    [
        ([], "now", "now"),
        (["--only", "planning"], "now", "then"),
        (["--only", "rows"], "then", "now"),
    ],
)
def test_planning_and_rows_may_be_measured_apart(options, planned, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDENSE_CACHE", "restored after the test")
    path = tmp_path / "plans_tiny.json"

    def document(when: str) -> dict[str, Any]:
        rows = [{"scheme": plans.UNIFORM[0], "when": when, "auto": {}}]
        return {"when": when, "sources": when, "batches": [1], "uniform": rows}

    path.write_text(json.dumps(document("then")))
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    monkeypatch.setattr(plans, "SUBJECTS", {"tiny": Tiny})
    monkeypatch.setattr(plans, "_plan", lambda *_: {})
    monkeypatch.setattr(plans, "_measured", lambda *_: document("now"))
    monkeypatch.setattr(plans, "_rows", lambda *_: iter(document("now")["uniform"]))
    monkeypatch.setattr(sys, "argv", ["plans", "tiny", *options])
    assert plans.main() == 0
    found = json.loads(path.read_text())
    assert (found["when"], [row["when"] for row in found["uniform"]]) == (planned, [rows])
