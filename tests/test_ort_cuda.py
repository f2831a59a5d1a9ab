"""Target ort-cuda: what is written for the CUDA provider, and calls of what was loaded for a GPU.

The files are run by the CPU provider; tests that need a GPU are marked and skip without one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import undense
from artifacts import IN_FEATURES, expected, make_artifact, sample
from graphs import graph
from helpers import assert_close
from numpy.typing import DTypeLike, NDArray
from token_models import token_model, token_samples
from undense.cli import main
from undense.passes.errors import InputError, SchemeError, TargetError
from undense.runtime import cuda_provider, gpu_tensors, ort_binding, ort_session
from undense.runtime.unloaded import Unloaded
from undense.runtime.verify import verify

SCHEMES = [
    "auto",
    "int_codes{bits=4,group=256}",
    "trit_planes{planes=1}",
    "trit_planes{planes=2}",
    "trit_planes{planes=3}",
    "trit_planes{planes=2,tied=false}",
    "low_rank{ratio=0.5}",
    "monarch{ratio=0.5}",
]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = TargetError("no GPU: buy one")
    monkeypatch.setattr(cuda_provider, "obstacle", lambda: found)


def compiled(folder: Path, source: ir.Model, scheme: str) -> undense.runtime.session.Session:  # type: ignore[name-defined]
    return undense.compile(
        source, target="ort-cuda", scheme=scheme, calibration_dataset=token_samples(), output=folder
    )


def packed(folder: Path) -> list[tuple[int, int]]:
    """Bits and block of each MatMulNBits, in order."""
    import onnx
    from onnx.inliner import inline_local_functions

    inlined = inline_local_functions(onnx.load(folder / "model.onnx"))
    found = []
    for node in inlined.graph.node:
        if node.op_type == "MatMulNBits":
            given = {attribute.name: attribute.i for attribute in node.attribute}
            assert len(node.input) == 3, "no zero points and no bias"
            assert given["accuracy_level"] == 0
            found.append((given["bits"], given["block_size"]))
    return found


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_holds(scheme: str, dtype: DTypeLike, tmp_path: Path) -> None:
    module = compiled(tmp_path / "m", token_model(256, dtype=dtype), scheme)
    assert isinstance(module, Unloaded)
    assert any("CPU provider stood in" in note for note in module.report["notes"])
    assert module.report["warnings"] == []
    assert module.report["layer_execution_error"] < 4 * np.finfo(dtype).eps
    found = verify(undense.load(tmp_path / "m", device="cpu"))
    assert found.holds, found.to_json()
    written = ir.load(tmp_path / "m/model.onnx").graph
    held = {value.dtype for value in written.initializers.values()} - {ir.DataType.UINT8}
    assert held == {ir.DataType.FLOAT if dtype == np.float32 else ir.DataType.FLOAT16}
    assert "Cast" not in {node.op_type for node in written}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("scheme", "nodes"),
    [
        ("int_codes{bits=8,group=256}", [(8, 256), (8, 32)]),
        ("int_codes{bits=4,group=256}", [(4, 128), (4, 32)]),
        ("trit_planes{planes=1}", [(2, 64), (2, 32)]),
        ("trit_planes{planes=2,group=64}", [(4, 64), (4, 32)]),
        ("trit_planes{planes=3}", [(4, 64), (2, 64), (4, 32), (2, 32)]),
        ("trit_planes{planes=2,tied=false}", [(2, 64), (2, 64), (2, 32), (2, 32)]),
    ],
)
def test_blocks_are_those_with_a_kernel(
    scheme: str, nodes: list[tuple[int, int]], tmp_path: Path
) -> None:
    """256 and 96 features: the second has no multiple of 64."""
    compiled(tmp_path / "m", token_model(256), scheme)
    assert packed(tmp_path / "m") == nodes


@pytest.mark.usefixtures("no_gpu")
def test_an_older_opset_is_raised(tmp_path: Path) -> None:
    compiled(tmp_path / "m", token_model(256, opset=13), "auto")
    assert ir.load(tmp_path / "m/model.onnx").opset_imports[""] >= 15
    assert verify(undense.load(tmp_path / "m", device="cpu")).holds


def test_float16_scales_that_overflow_name_the_layer(tmp_path: Path) -> None:
    weight = np.full((64, 48), 6e4, np.float16)
    source = graph("g (float16[b,64] x) => (float16[b,48] y) { y = MatMul(x, w) }", w=weight)
    with pytest.raises(undense.UndenseError, match=r"^w: its .* do not fit float16; choose"):
        undense.compile(source, target="ort-cuda", scheme="low_rank{rank=1}", output=tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"scheme": "int_codes{activations=int8}"}, SchemeError, "table: .*activations=int8 out"),
        ({"portable": True}, TargetError, "portable"),
        ({"kernels": "tvm"}, TargetError, "kernels is for target ort-cpu"),
    ],
)
def test_what_is_for_cpus_is_refused(
    options: dict[str, Any], kind: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=named):
        undense.compile(token_model(256), target="ort-cuda", output=tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_gpu")
def test_the_command_line_says_that_it_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ir.save(token_model(256), tmp_path / "model.onnx")
    out = str(tmp_path / "m")
    assert main(["compile", str(tmp_path / "model.onnx"), "-o", out, "--target", "ort-cuda",
                 "--json"]) == 0  # fmt: skip
    shown = capsys.readouterr()
    assert json.loads(shown.out)["target"] == "ort-cuda"
    assert "undense: compiled, and not run here: " in shown.err
    assert main(["verify", out, "--quiet"]) == 2
    assert "no GPU: buy one, or load it with device cpu" in capsys.readouterr().err
    assert main(["verify", out, "--device", "cpu", "--quiet"]) == 0


def test_a_gpu_is_not_timed_beside_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_artifact(tmp_path / "tiny.undense", device="cuda").path
    made = undense.load(path, device="cpu")
    made.device = "cuda"
    monkeypatch.setattr("undense.runtime.session.load", lambda *_, **__: made)
    assert main(["bench", str(path), "--against", "model.onnx"]) == 2
    assert "compile it with --scheme dense for the same target" in capsys.readouterr().err


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A session that takes its CPU for a GPU."""
    made = undense.load(make_artifact(tmp_path / "tiny.undense", device="cuda").path, device="cpu")
    made.device = "cuda"

    def run_bound(session: Any, inputs: Any, outputs: Any, device: str) -> list[Any]:
        assert device == "cuda"
        return ort_binding.run_bound(session, inputs, outputs, "cpu")

    monkeypatch.setattr(ort_session, "run_bound", run_bound)
    return made


@pytest.fixture
def cpu_is_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ort_session, gpu_tensors):
        monkeypatch.setattr(module, "is_on_gpu", gpu_tensors.is_torch)


def tensors(length: int = 3) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in sample(length).items()}


def assert_right(results: Any, inputs: dict[str, NDArray[Any]]) -> None:
    for got, want in zip(results, expected(**inputs), strict=True):
        assert_close(got, want, reduction=IN_FEATURES + 1)


def test_results_are_of_the_kind_of_the_inputs(session: Any) -> None:
    results = session(**sample())
    assert all(isinstance(value, np.ndarray) and value.flags.writeable for value in results)
    assert_right(results, sample())
    results = session(**tensors())
    assert all(isinstance(value, torch.Tensor) for value in results)
    assert_right([value.numpy() for value in results], sample())


@pytest.mark.usefixtures("cpu_is_gpu")
@pytest.mark.parametrize("length", [0, 1, 16])
def test_tensors_of_the_device_stay_there(session: Any, length: int) -> None:
    results = session(**tensors(length))
    assert_right([value.numpy() for value in results], sample(length))
    mixed = session.run({"x": tensors(length)["x"], "ids": sample(length)["ids"]})
    assert_right([value.numpy() for value in mixed.values()], sample(length))


@pytest.mark.usefixtures("cpu_is_gpu")
def test_bad_calls_do_not_reach_the_engine(session: Any) -> None:
    given = tensors()
    for changes, message in (
        ({"x": given["x"].double()}, "x: expected dtype float32, got float64"),
        ({"x": given["x"][:, :7]}, r"x: expected shape \[n, 8\], got \[3, 7\]"),
        ({"ids": torch.tensor([0, 10, 0])}, "ids: expected indices from 0 to 9, got 10"),
        (tensors(17), "x: n must lie in 0 to 16, got 17"),
    ):
        with pytest.raises(InputError, match=message):
            session.run({**given, **changes})


@pytest.fixture
def gpu() -> None:
    """Skips with the reason where ONNX Runtime or torch cannot use a GPU."""
    obstacle = cuda_provider.obstacle()
    if obstacle is not None:
        pytest.skip(str(obstacle))
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scheme", ["dense", *SCHEMES])
def test_a_gpu_computes_what_the_reference_says(
    scheme: str, dtype: DTypeLike, tmp_path: Path
) -> None:
    module = compiled(tmp_path / "m", token_model(256, dtype=dtype), scheme)
    assert module.device == "cuda"
    found = verify(module)
    assert found.holds, found.to_json()
    ids = token_samples(1)[0]["ids"]
    result = module(torch.from_numpy(ids).cuda())
    assert result.is_cuda
    np.testing.assert_array_equal(result.cpu().numpy(), module(ids))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_tensors_of_a_gpu_are_read_as_torch_left_them(tmp_path: Path) -> None:
    module = undense.load(make_artifact(tmp_path / "tiny.undense", device="cuda").path)
    for seed in range(20):
        inputs = sample(16, seed)
        x, ids = torch.from_numpy(inputs["x"]).cuda(), torch.from_numpy(inputs["ids"]).cuda()
        kept = module(x * 1, ids)
        module(x * 0, ids)
        assert_right([value.cpu().numpy() for value in kept], inputs)
