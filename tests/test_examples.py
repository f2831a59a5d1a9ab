"""The examples run as their texts say, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(*command: str | Path, folder: Path) -> str:
    # A script's own folder is on its path, the checkout is not: the installed package is used.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Makefile of the ONNX example has made."""
    folder = tmp_path_factory.mktemp("build")
    undense = Path(sys.executable).parent / "undense"
    make = ["make", f"BUILD={folder}", f"PYTHON={sys.executable}", f"UNDENSE={undense}"]
    _run(*make, folder=EXAMPLES / "onnx_build")
    assert "Nothing to be done" in _run(*make, folder=EXAMPLES / "onnx_build")
    return folder


def test_an_onnx_file_is_a_build_step(build: Path) -> None:
    assert (build / "output.npz").is_file()
    assert (build / "model.undense" / "manifest.json").is_file()


def test_an_artifact_runs_without_torch(build: Path) -> None:
    script = EXAMPLES / "run_without_torch.py"
    printed = _run(sys.executable, script, build / "model.undense", folder=build)
    assert "y: float32 [2, 64]" in printed
    assert "imported of torch and onnx: none" in printed


@pytest.mark.parametrize("verb", ["verify", "bench", "inspect"])
def test_verbs_on_an_artifact_need_neither_torch_nor_onnx(verb: str, build: Path) -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnx_ir', 'torch')));"
        "from undense.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    _run(sys.executable, "-c", script, verb, build / "model.undense", folder=build)


def test_a_pytorch_encoder_is_compiled_and_called(tmp_path: Path) -> None:
    printed = _run(sys.executable, EXAMPLES / "pytorch_encoder.py", folder=tmp_path)
    printed = printed.replace(",", "")
    before, after = (int(number) for number in re.findall(r"(\d+) bytes before (\d+)", printed)[0])
    assert after < before / 2
    assert "trit_planes{planes=3" in printed


def test_a_plan_is_edited_and_replayed(tmp_path: Path) -> None:
    printed = _run(sys.executable, EXAMPLES / "edit_plan.py", folder=tmp_path)
    first, edited = (line for line in printed.splitlines() if "output error" in line)
    assert _bytes(first) < _bytes(edited)


def _bytes(line: str) -> int:
    return int(line.split(": ")[1].split(" bytes")[0].replace(",", ""))


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
