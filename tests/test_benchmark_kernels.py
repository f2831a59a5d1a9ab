"""The benchmark of single layers: what it times is right, and what it writes is complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from undense.passes.errors import InputError

from benchmarks import ggml, ggml_build, kernel_table, kernels, peak
from benchmarks.kernel_forms import Weight
from benchmarks.kernel_layer import Layer, checked_outputs
from benchmarks.kernel_limits import limit
from benchmarks.kernel_peers import BASELINE
from benchmarks.kernel_results import KernelResults
from benchmarks.kernel_timing import Cell, time_cell
from benchmarks.peak import Peak

PRINTED = """cache level=2 kib=1024
cache level=3 kib=32768
fma threads=1 bits=256 117
fma threads=1 bits=512 118.5
int8 threads=1 with=avx512_vnni 458
read threads=1 kib=512 100
read threads=1 kib=4096 60
read threads=1 kib=131072 20
fma threads=2 bits=256 230
read threads=2 kib=1024 200
read threads=2 kib=8192 120
read threads=2 kib=131072 30
"""
FIELDS = {
    *("shape", "rows", "threads", "weights", "engine", "scheme", "four_bit", "stored_bytes"),
    *("median_ms", "p10_ms", "p90_ms", "samples", "calls", "gflops", "gb_per_s"),
    *("limit", "limit_ms", "distance", "speedup", "four_bit_ratio"),
    *("execution_error", "rounding_effect", "run"),
}
SHAPE = (80, 128)
LOCAL = [name for name in kernels.makers() if not name.startswith(ggml.ENGINE)]


@pytest.fixture(scope="module")
def weight() -> Weight:
    return Weight.random(*SHAPE)


@pytest.fixture
def one_thread() -> Peak:
    return peak.parse(PRINTED)[1]


def normal(rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, SHAPE[1]), np.float32)


def test_what_the_peak_program_prints_is_read() -> None:
    found = peak.parse(PRINTED)
    assert list(found) == [1, 2]
    assert found[1].operations("float32") == 118.5
    assert found[1].operations("int8") == 458
    assert found[2].operations("int8") is None
    assert found[2].read_gb_per_s == {"L2": 200, "L3": 120, "memory": 30}
    assert found[2].cache_bytes == {"L2": 2 << 20, "L3": 32 << 20}
    assert [found[1].level(size) for size in (700_000, 1 << 20, 32 << 20)] == ["L2", "L3", "memory"]


@pytest.mark.parametrize("line", ["fma 3", "fma threads=1 bits=256 fast", "tea threads=1 cups=2 3"])
def test_what_it_does_not_print_is_refused(line: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(line))):
        peak.parse(PRINTED + line)


@pytest.mark.slow
def test_the_peak_program_runs() -> None:
    found = peak.measure([1])[1]
    assert found.operations("float32") > 1
    assert set(found.read_gb_per_s) == {"L2", "L3", "memory"}


@pytest.mark.parametrize("name", LOCAL)
def test_a_layer_computes_its_form(name: str, weight: Weight) -> None:
    layer = kernels.makers()[name](weight)
    assert layer.name == name
    x = normal(5)
    call = layer.load(1)(x)
    call.run()
    execution, effect = layer.errors(x, call.output())
    assert (effect is None) == (layer.arithmetic == "float32")
    assert effect is None or 1e-4 < effect < 0.03
    assert execution is None or execution < 2e-6
    assert (execution is None) == (name == "torch dynamic int8")


@pytest.mark.parametrize("name", ggml.FORMATS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_of_ggml_computes_its_form(name: str, threads: int) -> None:
    if not ggml_build.built_folder().is_dir():
        pytest.skip("ggml is not built here; python -m benchmarks.kernels builds it")
    layer = ggml.quantized(Weight.random(80, 256), name)
    x = np.random.default_rng(1).standard_normal((5, 256), np.float32)
    call = layer.load(threads)(x)
    call.run()
    execution, effect = layer.errors(x, call.output())
    assert execution is None
    assert effect is not None
    assert 1e-4 < effect < 0.03


def test_ggml_refuses_inputs_that_are_no_whole_blocks(weight: Weight) -> None:
    with pytest.raises(InputError, match="blocks of 256, and 128 inputs"):
        ggml.quantized(weight, "TQ2_0")


def test_checked_outputs_hold_the_first_and_the_last_ones() -> None:
    assert checked_outputs(80).tolist() == list(range(80))
    some = checked_outputs(50_000)
    assert some[0] == 0
    assert some[-64:].tolist() == list(range(50_000 - 64, 50_000))
    assert len(some) < 600


@pytest.mark.parametrize(
    ("rows", "cached", "expected"),
    [
        (1, True, "reads from L2"),
        (1, False, "reads from memory"),
        (4000, True, "float32 arithmetic"),
    ],
)
def test_a_layer_meets_the_longest_limit(
    rows: int, cached: bool, expected: str, weight: Weight, one_thread: Peak
) -> None:
    layer = Layer("ORT", "float32", *SHAPE, weight.checked, 10240, 40960, lambda threads: None)
    found = limit(layer, rows, one_thread, cached=cached)
    assert found.name == expected
    moved = 1e-6 * (40960 + 4 * rows * sum(SHAPE))
    seconds = {"reads from L2": moved / 100, "reads from memory": moved / 20}
    assert found.milliseconds == pytest.approx(seconds.get(expected, 2e-6 * 10240 * rows / 118.5))


def test_copies_take_turns_where_weights_come_from_memory(weight: Weight, one_thread: Peak) -> None:
    layers = [kernels.makers()[name](weight) for name in (BASELINE, "torch float32")]
    small = Peak(one_thread.fma_gflops, {}, one_thread.read_gb_per_s, {"L2": 1, "L3": 30_000})
    rows = time_cell(layers, Cell(1, cached=False), normal(1), 1, small, quick=True)
    assert [row["weights"] for row in rows] == ["memory", "memory"]
    assert [row["limit"] for row in rows] == ["reads from memory", "reads from memory"]
    assert all(row["execution_error"] < 1e-6 for row in rows)


def test_a_run_writes_complete_rows_and_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "SHAPES", (SHAPE,))
    monkeypatch.setattr(kernels, "measure", lambda threads: {1: peak.parse(PRINTED)[1]})
    wanted = ("undense dense", "undense monarch{ratio=0.25}", "ORT MatMulNBits*", "ggml TQ2_0")
    only = [word for name in wanted for word in ("--only", f"80x128 {name}")]
    assert kernels.main(["--quick", "--threads", "1", *only]) == 0
    printed = capsys.readouterr().err
    (path,) = re.findall(r"rows in (\S+),", printed)
    document = json.loads(Path(path).read_text())
    (run,) = document["runs"]
    assert set(run) == {"machine", "versions", "sources", "peak"}
    assert [row["layer"] for row in document["skipped"]] == ["ggml TQ2_0"]
    rows = document["rows"]
    assert {(row["rows"], len(row)) for row in rows} == {(m, len(FIELDS)) for m in (1, 5, 32)}
    assert all(set(row) == FIELDS for row in rows)
    labels = [f"{row['engine']} {row['scheme']}" for row in rows if row["rows"] == 32]
    assert labels[0] == BASELINE
    assert labels[-2:] == ["undense dense", "undense monarch{ratio=0.25}"]
    assert len(labels) == 7
    assert all(row["speedup"] == 1 for row in rows if row["scheme"] == "float32")
    page = kernel_table.render(Path(path).parent)
    assert page == (Path(path).parent / "kernels.md").read_text()
    assert page.count("## ") == 6
    for table in re.findall(r"(?:^\|.*\|\n)+", page, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| ORT MatMulNBits, 4 bits, fastest |" in page
    assert "- ggml TQ2_0, 80×128: TQ2_0 has blocks of 256" in page


def test_a_pattern_that_names_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--quick", "--only", "7x7*"]) == 2
    assert "no layer is named by 7x7*" in capsys.readouterr().err


def test_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no kernels\.json"):
        kernel_table.render(tmp_path)


def test_rows_that_are_measured_again_replace_the_older_ones(tmp_path: Path) -> None:
    def row(scheme: str, median_ms: float, threads: int = 1) -> dict[str, object]:
        key = {"shape": [8, 8], "rows": 1, "weights": "cache", "engine": "undense"}
        return {**key, "threads": threads, "scheme": scheme, "median_ms": median_ms}

    peaks = peak.parse(PRINTED)
    first = KernelResults(peaks, tmp_path)
    first.put([row("a", 1.0), row("b", 2.0), row("b", 4.0, threads=2)])
    second = KernelResults({1: peaks[1]}, tmp_path)
    second.put([row("b", 3.0)])
    document = json.loads(second.path.read_text())
    found = [(entry["scheme"], entry["median_ms"], entry["run"]) for entry in document["rows"]]
    assert found == [("a", 1.0, 0), ("b", 3.0, 1), ("b", 4.0, 0)]
    second.drop_older()
    document = json.loads(second.path.read_text())
    assert [entry["median_ms"] for entry in document["rows"]] == [3.0, 4.0]
    assert len(document["runs"]) == 2
