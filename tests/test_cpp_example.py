"""The C++ example computes what Python does, bit for bit, and says what is wrong with an input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from undense.runtime.artifact import MODULE
from undense.runtime.verify import verify

EXAMPLE = Path(__file__).parent.parent / "examples" / "cpp"
Arrays = dict[str, NDArray[Any]]

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("make")), reason="needs g++ and make"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    command = ["make", f"BUILD={folder}", f"PYTHON={sys.executable}", "CXX=g++ -Werror"]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def _single() -> ir.Model:
    """Indices, a cache and a mask over both: a sum of symbols, and a name beyond ASCII."""
    model = graph(
        """
        agraph (int64[batch, tokens] ids, float[batch, past, 64] cache, bool[batch, all] mask) =>
            (float[batch, tokens, 96] y, float[batch, all, 64] grown, bool[batch, all] inverse)
        {
            x = Gather <axis = 0> (table, ids)
            y = MatMul (x, w)
            grown = Concat <axis = 1> (cache, x)
            inverse = Not (mask)
        }
        """,
        table=normal(50, 64, seed=1),
        w=normal(64, 96, seed=2),
    )
    for value in (model.graph.inputs[2], model.graph.outputs[2]):
        value.shape = ir.Shape(["batch", "past + tokens"])
    model.graph.outputs[2].name = "größe"
    return model


def _half() -> ir.Model:
    """Weights, inputs and outputs in float16."""
    return graph(
        """
        agraph (float16[batch, 64] x) => (float16[batch, 48] y) {
            h = MatMul (x, first)
            r = Relu (h)
            y = MatMul (r, second)
        }
        """,
        first=normal(64, 96, seed=1, dtype=np.float16),
        second=normal(96, 48, seed=2, dtype=np.float16),
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "m.undense"
    undense.compile(_single(), scheme="int_codes{bits=4,group=32}", output=path)
    return path


def _inputs(batch: int = 2, tokens: int = 5, past: int = 3) -> Arrays:
    random = np.random.default_rng(0)
    cache = random.standard_normal((batch, past, 64)).astype(np.float32)
    ids = random.integers(0, 50, (batch, tokens))
    return {"ids": ids, "cache": cache, "mask": random.random((batch, past + tokens)) > 0.5}


def _run(program: Path, artifact: Path, inputs: Arrays, *options: str) -> Arrays:
    files = artifact.parent / "in.safetensors", artifact.parent / "out.safetensors"
    save_file(inputs, files[0])
    command = [str(program), str(artifact), *map(str, files), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    assert done.stdout.startswith(f"{len(load_file(files[1]))} outputs; median of")
    return load_file(files[1])


def _assert_same(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("options", [(), ("2", "3")], ids=["default", "threads and repeats"])
def test_outputs_are_those_of_python(program: Path, single: Path, options: tuple[str, ...]) -> None:
    for inputs in (_inputs(), _inputs(1, 1, 0)):
        _assert_same(_run(program, single, inputs, *options), undense.load(single).run(inputs))


@pytest.mark.parametrize("scheme", ["dense", "auto", "low_rank{ratio=0.5}"])
def test_float16_through_and_through(program: Path, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "m.undense"
    session = undense.compile(_half(), scheme=scheme, output=path)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float16)
    wanted = session.run({"x": x})
    assert wanted["y"].dtype == np.float16
    assert verify(session).holds
    _assert_same(_run(program, path, {"x": x}), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "ids: the input is not given"),
        ({"other": np.zeros(3, np.float32)}, "other: is no input of the module"),
        ({"ids": np.zeros((2, 5), np.int32)}, "ids: expected int64, got int32"),
        ({"ids": np.full((2, 5), 50)}, "ids: expected indices from 0 to 49, got 50"),
        (
            {"ids": np.zeros((2, 5, 1), np.int64)},
            r"expected shape \[batch, tokens\], got \[2, 5, 1\]",
        ),
        ({"ids": np.zeros((3, 5), np.int64)}, r"cache: .* got \[2, 3, 64\]; batch is 3 elsewhere"),
        ({"mask": np.zeros((2, 9), np.bool_)}, r"mask: .* got \[2, 9\]; past \+ tokens is 8"),
        (
            {"cache": np.zeros((2, 3, 63), np.float32)},
            r"expected shape \[batch, past, 64\], got \[2, 3, 63\]$",
        ),
    ],
)
def test_inputs_are_checked(program: Path, single: Path, change: Any, message: str) -> None:
    inputs = {name: value for name, value in {**_inputs(), **change}.items() if value is not None}
    with pytest.raises(RuntimeError, match=message):
        _run(program, single, inputs)


def test_other_files_are_refused(program: Path, single: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is it an undense artifact"):
        _run(program, tmp_path / "nothing", _inputs())
    artifact = tmp_path / "m.undense"
    shutil.copytree(single, artifact)
    manifest = (artifact / "manifest.json").read_text()
    (artifact / "manifest.json").write_text(manifest.replace(MODULE, "other.so"))
    with pytest.raises(RuntimeError, match=r"no module\.so: compile it for target llvm"):
        _run(program, artifact, _inputs())
    (artifact / "manifest.json").write_text(manifest[: len(manifest) // 2])
    with pytest.raises(RuntimeError, match=r"manifest\.json: JSON at byte"):
        _run(program, artifact, _inputs())
