"""A compile that is killed goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal
from undense.passes.cache import Cache

LAYERS = 6
TEXT = """
agraph (float[batch, 96] x0) => (float[batch, 96] x6) {
    x1 = MatMul (x0, w1)  x2 = MatMul (x1, w2)  x3 = MatMul (x2, w3)
    x4 = MatMul (x3, w4)  x5 = MatMul (x4, w5)  x6 = MatMul (x5, w6)
}
"""

# Without `if __name__ == "__main__"`, as users write it. It says how often it calibrates and fits.
_SCRIPT = """
import os, sys, time
import undense
from undense.frontend import stats_cache
from undense.passes import cache, workers

folder, output, kept, processes, stop = sys.argv[1:]
workers._WORTH_PROCESSES = 0 if processes == "2" else float("inf")
stored = {"fit": 0, "stats": 0}
put = cache.Cache.put

def counted(self, kind, *rest, **options):
    put(self, kind, *rest, **options)
    stored[kind] += 1

cache.Cache.put = counted

def progress(done, total, text):
    if text == "fit" and stop != "0" and 0 < done < total:
        os.kill(os.getpid(), int(stop))
        time.sleep(60)

undense.compile(
    folder + "/model.onnx", target="ort-cpu", scheme="low_rank{ratio=0.5}", lossless=False,
    calibration_dataset=folder + "/calib.npz", output=output,
    cache=kept if kept else False, progress=progress,
)
print(stored["stats"], stored["fit"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    weights = {f"w{index}": normal(96, 96, seed=index) for index in range(1, LAYERS + 1)}
    ir.save(graph(TEXT, **weights), folder / "model.onnx")
    np.savez(folder / "calib.npz", **{f"{i}/x0": normal(32, 96, seed=i) for i in range(9)})
    return folder


def _compile(
    folder: Path, output: Path, kept: Path | None, processes: int, stop: int = 0
) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    arguments = [str(folder), str(output), str(kept or ""), str(processes), str(stop)]
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "LOKY_MAX_CPU_COUNT": "2"},
    )  # fmt: skip


def _files(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifact.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, bytes]:
    done = _compile(folder, folder / "uninterrupted", None, 1)
    assert done.returncode == 0, done.stderr
    return _files(folder / "uninterrupted")


@pytest.mark.parametrize(
    ("processes", "stop"),
    [
        (1, signal.SIGKILL),
        (2, signal.SIGKILL),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_compile_goes_on_where_it_was(
    folder: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    processes: int,
    stop: signal.Signals,
) -> None:
    kept, output = tmp_path / "cache", tmp_path / "artifact"
    stopped = _compile(folder, output, kept, processes, stop)
    assert stopped.returncode == -stop, stopped.stderr
    assert not output.exists()
    fits = sum(entry.kind == "fit" for entry in Cache(kept).entries())
    assert 1 <= fits < LAYERS

    resumed = _compile(folder, output, kept, processes)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == f"0 {LAYERS - fits}\n", "only the rest is fitted, nothing calibrated"
    assert _files(output) == uninterrupted


def test_a_second_compile_computes_nothing(
    folder: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    counts = []
    for name in ("first", "second"):
        done = _compile(folder, tmp_path / name, tmp_path / "cache", 1)
        assert done.returncode == 0, done.stderr
        counts.append(done.stdout)
        assert _files(tmp_path / name) == uninterrupted
    assert counts == [f"1 {LAYERS}\n", "0 0\n"]
