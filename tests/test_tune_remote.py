"""Measuring on servers of a tracker, here on the loopback, and what is said where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.backend.tuning.database import read_records
from undense.cli import main

KEY = "x86-64-v3"
TEXT = "agraph (float[batch, 64] x) => (float[batch, 48] y) { y = MatMul (x, first) }"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(
    module: str, port: int, *options: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    ports = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    return subprocess.Popen(
        [sys.executable, "-m", f"tvm.exec.{module}", *ports, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        start_new_session=True,  # with the processes it forks, so that all of them end
    )


@contextlib.contextmanager
def served(env: Mapping[str, str], key: str, count: int) -> Iterator[str]:
    """The address of a tracker with some servers for a key, which have `env` in addition."""
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    from tvm import rpc

    port = _free_port()
    address = f"127.0.0.1:{port}"
    processes = [_start("rpc_tracker", port)]
    options = ("--tracker", address, "--key", key)
    try:
        for _ in range(count):
            processes.append(_start("rpc_server", _free_port(), *options, env=env))
        _wait(lambda: socket.create_connection(("127.0.0.1", port)).close() or True)
        session = rpc.connect_tracker("127.0.0.1", port)
        _wait(lambda: session.summary()["queue_info"].get(key, {}).get("free") == count)
        session.close()
        yield address
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    """The address of a tracker with two servers for `KEY`."""
    with served({}, KEY, 2) as address:
        yield address


def _wait(ready: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert time.monotonic() < end, "the tracker and its servers did not start"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "out"
    model: ir.Model = graph(TEXT, first=normal(64, 48))
    undense.compile(model, target=f"llvm -mcpu={KEY}", scheme="dense", output=path)
    return path


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.mark.slow
def test_candidates_are_measured_on_all_servers_and_servers_come_back(
    tracker: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(artifact), "--trials", "4", "--rows", "1", "--tracker", tracker]
    for _ in range(2):
        assert main([*command, "--threads", "1", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        (result,) = found["results"]
        assert (result["kind"], result["tried"], result["wrong"]) == ("dense", 4, 0)
    (record,) = read_records()
    assert record.processor.startswith(KEY)
    assert record.threads == 1


@pytest.mark.slow
def test_a_key_without_server_is_named(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = graph(TEXT, first=normal(64, 48))
    undense.compile(model, target="llvm -mcpu=x86-64-v2", scheme="dense", output=tmp_path / "out")
    assert main(["tune", str(tmp_path / "out"), "--tracker", tracker]) == 2
    said = capsys.readouterr().err
    assert "has no server for 'x86-64-v2' (x86-64-v3)" in said
    assert "python -m tvm.exec.rpc_server" in said


@pytest.mark.parametrize(
    ("tracker", "named"),
    [("nowhere", "give HOST:PORT"), (f"127.0.0.1:{_free_port()}", "cannot be reached")],
    ids=["without a port", "closed"],
)
def test_a_tracker_that_is_none_is_one_sentence(
    tracker: str, named: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(artifact), "--tracker", tracker]) == 2
    assert named in capsys.readouterr().err
