"""What only the TVM engine can get wrong: shared memory, and libraries that replace others."""

from __future__ import annotations

import functools
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import undense
from artifacts import export
from safetensors.numpy import save_file
from undense.runtime.artifact import MODULE, WEIGHTS, Manifest, TensorInfo, write_artifact


@functools.cache
def library(scale: float) -> bytes:
    """main(x, weight) = (scale * x, x, weight, weight as [2, 2])."""
    import tvm
    from tvm import relax

    length = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((length,), dtype="float32"))
    weight = relax.Var("weight", relax.TensorType((4,), dtype="float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, weight]):
        with builder.dataflow():
            scaled = builder.emit(relax.op.multiply(x, relax.const(np.float32(scale))))
            square = builder.emit(relax.op.reshape(weight, (2, 2)))
            output = builder.emit_output(relax.Tuple([scaled, x, weight, square]))
        builder.emit_func_output(output)
    return export(builder)


def make(path: Path, scale: float) -> Path:
    def fill(folder: Path) -> Manifest:
        (folder / MODULE).write_bytes(library(scale))
        save_file({"weight": np.arange(4, dtype=np.float32)}, folder / WEIGHTS)
        shapes = {"scaled": ("n",), "same": ("n",), "weight": (4,), "square": (2, 2)}
        return Manifest(
            engine="tvm",
            target="llvm",
            inputs=(TensorInfo("x", "float32", ("n",)),),
            outputs=tuple(TensorInfo(name, "float32", shape) for name, shape in shapes.items()),
            parameters=("weight",),
        )

    return write_artifact(path, fill).path


def test_callers_cannot_write_into_inputs_or_weights(tmp_path):
    session = undense.load(make(tmp_path / "a", 2.0))
    x = torch.ones(64)
    assert x.data_ptr() % 64 == 0  # so its memory is shared with the engine
    for result in session(x):
        result.fill_(-7)
    assert x.tolist() == [1.0] * 64
    scaled, same, weight, square = session(np.ones(3, np.float32))
    assert scaled.tolist() == [2.0] * 3
    assert same.tolist() == [1.0] * 3
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert square.tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_an_artifact_that_replaces_another_runs_its_own_code(tmp_path):
    x = np.ones(3, np.float32)
    sessions = [undense.load(make(tmp_path / "a", scale)) for scale in (2.0, 3.0, 2.0)]
    assert [float(session(x)[0][0]) for session in sessions] == [2.0, 3.0, 2.0]


def test_each_thread_has_a_virtual_machine_of_its_own(tmp_path):
    session = undense.load(make(tmp_path / "a", 2.0))
    both_there = threading.Barrier(2, timeout=30)

    def machine() -> object:
        session(np.ones(3, np.float32))
        both_there.wait()  # neither thread ends before the other has begun
        return session._main()

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: machine(), range(2))
    assert first is not second
    assert session._main() is session._main()


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_the_library_is_unloaded_with_the_last_session(tmp_path):
    path = make(tmp_path / "a", 2.0)
    session = undense.load(path)
    results = session(np.ones(3, np.float32))
    assert mapped(path)
    del session
    gc.collect()
    assert not mapped(path)
    assert results[0].tolist() == [2.0] * 3


def test_two_sessions_on_one_artifact(tmp_path):
    path = make(tmp_path / "a", 2.0)
    first, second = undense.load(path), undense.load(path)
    x = np.ones(3, np.float32)
    assert first(x)[0].tolist() == second(x)[0].tolist() == [2.0] * 3
    del first
    gc.collect()
    assert second(x)[0].tolist() == [2.0] * 3


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    import ml_dtypes
    import tvm
    from tvm import relax

    length = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((length, 4), dtype="bfloat16"))
    weight = relax.Var("weight", relax.TensorType((4,), dtype="bfloat16"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, weight]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(relax.op.add(x, weight)))
        builder.emit_func_output(output)
    half = np.arange(4).astype(ml_dtypes.bfloat16)

    def fill(folder: Path) -> Manifest:
        (folder / MODULE).write_bytes(export(builder))
        save_file({"weight": half}, folder / WEIGHTS)
        return Manifest(
            engine="tvm",
            target="llvm",
            inputs=(TensorInfo("x", "bfloat16", ("n", 4)),),
            outputs=(TensorInfo("y", "bfloat16", ("n", 4)),),
            parameters=("weight",),
        )

    write_artifact(tmp_path / "half.undense", fill)
    module = undense.load(tmp_path / "half.undense")
    given = np.full((3, 4), 0.5).astype(ml_dtypes.bfloat16)
    found = module(given)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), np.arange(4) + np.full((3, 4), 0.5))
    tensor = module(torch.full((3, 4), 0.5, dtype=torch.bfloat16))
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor.float(), torch.from_numpy(found.astype(np.float32)))
    assert module([[0.5] * 4]).dtype == ml_dtypes.bfloat16
