"""Measuring on servers with a GPU, here an emulated one on the loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import undense
from test_tune_gpu import TARGET, device_code_by, emulated_code, model
from test_tune_remote import served
from undense.backend.tuning import remote
from undense.backend.tuning.artifact import tune
from undense.backend.tuning.cuda import servers
from undense.backend.tuning.cuda import tune as tuning
from undense.backend.tuning.database import read_records


@pytest.fixture(scope="module")
def tracker(cuda_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracker with a server, all of whose processes have the emulation."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text("import cuda_emulation\ncuda_emulation.load()\n")
    path = os.pathsep.join([str(folder), *sys.path])
    with served({"PYTHONPATH": path}, "sm_90", 1) as address:
        yield address


@pytest.mark.slow
def test_candidates_are_measured_on_the_gpu_of_a_server(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "check_nvcc", lambda _: None)
    monkeypatch.setattr(servers, "nvcc_version", lambda: (13, 0))
    monkeypatch.setattr(remote, "_FLUSHED", 2**12)
    with device_code_by(emulated_code):
        undense.compile(model(), target=TARGET, scheme="dense", output=tmp_path / "out")
        found = tune(tmp_path / "out", trials=2, rows=[8], tracker=tracker)
    assert [(row["tried"], row["wrong"]) for row in found["results"]] == [(2, 0)]
    (record,) = read_records()
    assert record.processor == "sm_90"
