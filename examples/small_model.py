"""Writes a small classifier as an ONNX file, samples to calibrate it on, and an input.

python examples/small_model.py MODEL.onnx CALIBRATION.npz INPUT.npz
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = {"hidden": (256, 512), "classes": (512, 64)}


def main(model_path: str, calibration_path: str, input_path: str) -> None:
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32), name
        )
        for name, shape in WIDTHS.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "hidden"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "classes"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "classifier", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, model_path)

    def rows(count: int) -> np.ndarray:
        return random.standard_normal((count, 256)).astype(np.float32)

    # Many samples in one file: the key says which sample and which input.
    np.savez(
        calibration_path, allow_pickle=False, **{f"{index}/x": rows(64) for index in range(16)}
    )
    np.savez(input_path, x=rows(3))


if __name__ == "__main__":
    main(*sys.argv[1:])
