"""`bench --profile`: each function once with its share, for both engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import undense
from artifacts import make_artifact, sample
from graphs import graph, normal
from undense.cli import main
from undense.passes.errors import InputError
from undense.runtime.calls import shapes
from undense.runtime.profile import profile

TEXT = """
agraph (float[batch, 64] x) => (float[batch, 64] y) {
    a = MatMul (x, first)
    b = Softmax (a)
    y = MatMul (b, second)
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "tvm"
    undense.compile(graph(TEXT, first=normal(64, 64), second=normal(64, 64)), output=out)
    return out


def test_functions_of_the_virtual_machine(
    compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(compiled), "--profile", "--repeats", "3", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(function["share"] for function in found["functions"]) == pytest.approx(1)
    own = {function["name"]: function for function in found["functions"] if not function["builtin"]}
    product = next(value for name, value in own.items() if name.startswith("int_codes"))
    assert product["calls"] == 2
    assert product["workload"].endswith("x64")
    assert 0 < found["builtin_share"] < 1
    assert found["run_ms"] > 0
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "the virtual machine's own builtins: " in shown
    assert "function " in shown


def test_operators_of_onnx_runtime(tmp_path: Path) -> None:
    session = undense.load(make_artifact(tmp_path / "a", "ort").path, num_threads=1)
    found = profile(session, sample(), repeats=2)
    assert {function["name"] for function in found["functions"]} == {"Gather", "Gemm", "Relu"}
    product = next(row for row in found["functions"] if row["name"] == "Gemm")
    assert product["calls"] == 1
    assert product["workload"].startswith("3x8, ")
    assert product["workload"].endswith(" -> 3x4")
    assert found["builtin_share"] == 0
    assert json.loads(json.dumps(found)) == found


def test_shapes_as_text() -> None:
    assert shapes([(3, 96), ()], (3,)) == "3x96, scalar -> 3"


def test_bad_options(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="repeats must be at least 1"):
        profile(undense.load(compiled), {}, repeats=0)
    assert main(["bench", str(compiled), "--profile", "--against", "m.onnx"]) == 2
    assert "leave --against out" in capsys.readouterr().err
