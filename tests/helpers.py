"""Shared by the tests: a closeness that follows from dtype and length, and one-node models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import ArrayLike, DTypeLike, NDArray
from undense.passes.structures.base import Factors, Form, Structure


def assert_close(
    actual: ArrayLike, expected: ArrayLike, *, reduction: int, dtype: DTypeLike = np.float32
) -> None:
    """`|a − e| ≤ 8·reduction·eps·max|e|` for each entry, and equal shapes.

    Args:
        actual: what was computed in `dtype`.
        expected: the same in a wider or equal dtype.
        reduction: the longest sum behind one entry.
        dtype: the narrowest floating dtype that `actual` went through.
    """
    got, want = np.asarray(actual), np.asarray(expected)
    assert got.shape == want.shape, f"shape {got.shape} is not {want.shape}"
    if want.size == 0:
        return
    assert np.isfinite(got).all(), "an entry is not finite"
    bound = 8 * reduction * np.finfo(dtype).eps * np.abs(want).max()
    worst = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    assert worst <= bound, f"differs by {worst:.3g}, more than {bound:.3g}"


def one_node_model(
    structure: Structure,
    factors: Factors,
    out_features: int,
    in_features: int,
    *,
    form: Form = "fast",
    opset: int = 21,
    gather: bool = False,
    leading: tuple[str | int, ...] | None = None,
) -> onnx.ModelProto:
    """`y = undense.{op_type}(x, *factors)`, or its gather, with the function that says what it is.

    `leading` holds the dimensions of x before in_features; None leaves even the rank open.
    """
    function = (structure.gather_function if gather else structure.function)(form, opset)
    tensors = structure.pack(factors, form)
    shape = None if leading is None else [*leading, *([] if gather else [in_features])]
    out_shape = None if leading is None else [*leading, in_features if gather else out_features]
    x_type = ir.DataType.INT64 if gather else ir.DataType.FLOAT
    x = ir.Value(name="x", shape=_shape(shape), type=ir.TensorType(x_type))
    constants = [
        ir.Value(
            name=f"w.{name}",
            const_value=tensor,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
        )
        for name, tensor in tensors.items()
    ]
    attributes = structure.attributes(out_features, in_features, form)
    node = ir.node(
        function.name,
        [x, *constants],
        {name: value for name, value in attributes.items() if name in function.attributes},
        domain=function.domain,
        overload=function.overload,
    )
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), _shape(out_shape)
    imports = {**function.opset_imports, "": opset, function.domain: 1}
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=constants, opset_imports=imports, name="one_node"
    )
    model = ir.Model(graph, ir_version=13 if opset >= 25 else 10, functions=[function])
    return ir.to_proto(model)


def run_onnx(model: onnx.ModelProto, **feeds: NDArray[Any]) -> NDArray[Any]:
    """The first output of a model in stock ONNX Runtime, one thread, no hidden rounding of x."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Where ONNX Runtime fuses DequantizeLinear and MatMul it would round x to int8 by default.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output: NDArray[Any] = session.run(None, feeds)[0]
    return output


def _shape(dimensions: list[str | int] | None) -> ir.Shape | None:
    return None if dimensions is None else ir.Shape(dimensions)
