"""A tiny module for both engines: ids [n] and x [n, 8] to (x Wᵀ + T[ids], relu of it)."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from undense.runtime.artifact import (
    MODEL,
    MODULE,
    REPORT,
    WEIGHTS,
    Artifact,
    Device,
    Engine,
    Manifest,
    TensorInfo,
    Tolerance,
    package_versions,
    write_artifact,
)
from undense.runtime.verify import write_expectations

ROWS, IN_FEATURES, OUT_FEATURES, LONGEST = 10, 8, 4, 16
SIGNATURE = (
    TensorInfo("x", "float32", ("n", IN_FEATURES)),
    TensorInfo("ids", "int64", ("n",), bounds=(0, ROWS - 1)),
)
OUTPUTS = tuple(TensorInfo(name, "float32", ("n", OUT_FEATURES)) for name in ("sum", "relu"))
REPORT_TEXT = '{"sites": [], "refusals": [], "bytes": {"before": 1, "after": 1}}\n'


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    shapes = {"weight": (IN_FEATURES, OUT_FEATURES), "table": (ROWS, OUT_FEATURES)}
    return {k: generator.standard_normal(v).astype(np.float32) for k, v in shapes.items()}


def expected(x: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held = weights()
    total = x.astype(np.float64) @ held["weight"] + held["table"][ids]
    return total, np.maximum(total, 0)


def sample(length: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((length, IN_FEATURES)).astype(np.float32)
    return {"x": x, "ids": generator.integers(0, ROWS, length)}


def manifest(engine: Engine) -> Manifest:
    tolerance = Tolerance(1e-5, "8 * in_features * eps(float32), rounded up")
    return Manifest(
        engine=engine,
        target="llvm" if engine == "tvm" else "ort-cpu",
        inputs=SIGNATURE,
        outputs=OUTPUTS,
        dimension_bounds={"n": (0, LONGEST)},
        parameters=("weight", "table") if engine == "tvm" else (),
        execution_tolerance={info.name: tolerance for info in OUTPUTS},
        versions=package_versions(),
    )


def write_onnx(path: Path) -> None:
    from onnx import TensorProto, checker, helper, numpy_helper, save

    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Add", ["product", "rows"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", IN_FEATURES]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", OUT_FEATURES])
            for name in ("sum", "relu")
        ],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    save(model, path)


@functools.cache
def module_bytes(device: Device = "cpu") -> bytes:
    """The exported library; compiled once for all tests, for a GPU inside `emulated()`."""
    import tvm
    from tvm import relax

    length = tvm.tirx.Var("n", "int64")
    shapes = {
        "x": ((length, IN_FEATURES), "float32"),
        "ids": ((length,), "int64"),
        "weight": ((IN_FEATURES, OUT_FEATURES), "float32"),
        "table": ((ROWS, OUT_FEATURES), "float32"),
    }
    values = {k: relax.Var(k, relax.TensorType(s, dtype=d)) for k, (s, d) in shapes.items()}
    builder = relax.BlockBuilder()
    with builder.function("main", list(values.values())):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(values["x"], values["weight"]))
            rows = builder.emit(relax.op.take(values["table"], values["ids"], axis=0))
            total = builder.emit(relax.op.add(product, rows))
            result = relax.Tuple([total, relax.op.nn.relu(total)])
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    return export(builder) if device == "cpu" else export_for_gpu(builder)


def export(builder: Any) -> bytes:
    """The library of what a `relax.BlockBuilder` holds."""
    import tvm

    return _library(tvm.compile(builder.get(), target="llvm"))


def export_for_gpu(builder: Any) -> bytes:
    """The library of what a `relax.BlockBuilder` holds, its functions scheduled as they come."""
    import tvm
    from cuda_emulation import TARGET
    from tvm import relax
    from tvm.s_tir import dlight

    with tvm.target.Target(TARGET):
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(module)
        return _library(tvm.compile(module, target=tvm.target.Target(TARGET)))


def _library(executable: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODULE
        executable.export_library(str(path))
        return path.read_bytes()


def make_artifact(
    destination: Path,
    engine: Engine = "ort",
    *,
    onnx: bool = True,
    module: bytes | None = None,
    **changes: Any,
) -> Artifact:
    """For TVM with `module.so`, that for CPUs by default, and weights.

    `changes` are to the manifest.
    """

    def fill(folder: Path) -> Manifest:
        if onnx:
            write_onnx(folder / MODEL)
        if engine == "tvm":
            (folder / MODULE).write_bytes(module or module_bytes())
            save_file(weights(), folder / WEIGHTS)
        samples = [sample(3 + i, i) for i in range(2)]
        references = [
            {info.name: value for info, value in zip(OUTPUTS, expected(**held), strict=True)}
            for held in samples
        ]
        dense = [{k: (1.25 * v).astype(np.float32) for k, v in r.items()} for r in references]
        write_expectations(folder, samples, dense, references)
        (folder / REPORT).write_text(REPORT_TEXT)
        return dataclasses.replace(manifest(engine), **changes)

    return write_artifact(destination, fill)
