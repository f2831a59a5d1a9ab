"""Shared by the tests of the TVM lowering: compile a model, run it, compare it with its peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import tvm
from helpers import assert_close
from numpy.typing import NDArray
from tvm import relax
from undense.backend import relax_build
from undense.backend.target import Target

Arrays = Mapping[str, NDArray[Any]]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(high: int, *shape: int, low: int = 0) -> NDArray[np.int64]:
    return RNG.integers(low, high, shape)


def lines(names: list[str], form: str) -> tuple[str, str]:
    """Output list and body of a graph with one node an operator."""
    outputs = ", ".join(f"float y{i}" for i in range(len(names)))
    body = "\n".join(f"y{i} = {form.format(name)}" for i, name in enumerate(names))
    return outputs, body


def parse(graph: str, opset: int = 20) -> onnx.ModelProto:
    """A model from the text of its graph."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{graph}')


def compile_model(model: onnx.ModelProto | ir.Model) -> relax_build.TvmModule:
    """The model compiled for this machine."""
    ir_model = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    relax_build.check(ir_model, Target.parse("llvm"))
    return relax_build.build(ir_model, Target.parse("llvm"))


def run(module: relax_build.TvmModule, feeds: Arrays) -> list[NDArray[Any]]:
    """The outputs of a compiled module."""
    machine = relax.VirtualMachine(module.executable, tvm.cpu())
    given = [feeds[signature.name] for signature in module.inputs]
    tensors = [tvm.runtime.tensor(np.asarray(array, order="C")) for array in given]
    weights = [tvm.runtime.tensor(array) for array in module.weights.values()]
    return [output.numpy() for output in machine["main"](*tensors, *weights)]


def run_ort(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[Any]]:
    """The outputs of ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    outputs: list[NDArray[Any]] = session.run(
        None, {name: array for name, array in feeds.items() if name in names}
    )
    return outputs


def compare(actual: NDArray[Any], expected: NDArray[Any], reduction: int) -> None:
    """Equal where the dtype is exact, close where it rounds; equal NaNs and infinities."""
    assert actual.dtype == expected.dtype
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert actual.shape == expected.shape
    assert_close(actual[finite], expected[finite], reduction=reduction, dtype=expected.dtype)


def check_case(graph: str, *many: Arrays, opset: int = 20, reduction: int = 8) -> None:
    """One compiled module agrees with ONNX Runtime on every set of inputs."""
    model = parse(graph, opset)
    module = compile_model(model)
    for feeds in many:
        results = zip(run(module, feeds), run_ort(model, feeds), strict=True)
        for actual, expected in results:
            compare(actual, expected, reduction)
