"""ONNX models of one layer, `x [rows, in_features] -> y [rows, out_features]`."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from undense.passes.structures.base import DOMAIN, Structure

from .kernel_forms import Form

_OPSET = 21
_IR_VERSION = 10


def dense_model(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """`y = x Wᵀ` for `W [out_features, in_features]`, as one MatMul."""
    out_features, in_features = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", out_features])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def structured_model(form: Form, out_features: int, in_features: int) -> onnx.ModelProto:
    """The operator of a structure with its function, which stock ONNX Runtime runs."""
    structure: Structure = form.structure
    function = structure.function("fast", _OPSET)
    tensors = [
        ir.Value(
            name=name,
            const_value=tensor,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
        )
        for name, tensor in structure.pack(form.factors, "fast").items()
    ]
    x, y = (
        ir.Value(name=name, shape=ir.Shape(["rows", width]), type=ir.TensorType(ir.DataType.FLOAT))
        for name, width in (("x", in_features), ("y", out_features))
    )
    attributes = structure.attributes(out_features, in_features, "fast")
    node = ir.node(
        structure.op_type, [x, *tensors], attributes=attributes, domain=DOMAIN, outputs=[y]
    )
    imports = {"": _OPSET, DOMAIN: 1, "com.microsoft": 1}
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=tensors, opset_imports=imports, name="layer"
    )
    model = ir.Model(graph, ir_version=_IR_VERSION, functions=[function])
    return ir.serde.serialize_model(model)
