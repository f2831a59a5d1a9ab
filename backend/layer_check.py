"""Holds ONNX Runtime to the reference layer by layer: each structured node on its own input.

It runs on the CPU, for other targets too: what is checked there is the file, not the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.errors import LoweringError
from ..passes.nodes import StructuredNode, structured_nodes
from ..runtime.artifact import KERNELS, MODEL
from ..runtime.compare import relative_error

Arrays = Mapping[str, NDArray[Any]]


def check_layers(model: ir.Model, folder: Path, samples: Sequence[Arrays]) -> float | None:
    """The largest relative error of a structured node in ONNX Runtime, given its own input.

    Args:
        model: the rewritten model whose file stands in `folder`.
        folder: holds `model.onnx`, and `kernels.so` if it is to be run with it.
        samples: inputs of the model.

    Returns:
        The error; None if the model has no structured node that multiplies, but in bfloat16, for
        which ONNX Runtime has no kernels on CPUs.

    Raises:
        LoweringError: a layer is off by more than the rounding of its type, `8 ε √in_features`.
    """
    nodes = [
        node
        for node in structured_nodes(model)
        if not node.gathers and node.node.outputs[0].dtype != ir.DataType.BFLOAT16
    ]
    if not nodes or not samples:
        return None
    worst = 0.0
    for sample in samples:
        values = _run(folder, nodes, sample)
        for node in nodes:
            x, y = values[_name(node.node.inputs[0])], values[_name(node.node.outputs[0])]
            expected = node.structure.reference(node.factors(), x.astype(np.float64))
            error = relative_error(y, expected)
            bound = 8 * float(np.finfo(y.dtype).eps) * math.sqrt(node.in_features)
            if error > bound:
                raise LoweringError(
                    f"{node.site}: ONNX Runtime computes {node.structure} with a relative error of "
                    f"{error:.1e}, above the {bound:.1e} of {y.dtype}; please report it, and "
                    "choose another scheme for this layer"
                )
            worst = max(worst, error)
    return worst


def _run(folder: Path, nodes: Sequence[StructuredNode], sample: Arrays) -> dict[str, Any]:
    """Inputs and outputs of the nodes, from a run of the file with them as graph outputs."""
    import onnxruntime

    proto = onnx.load(folder / MODEL, load_external_data=False)
    graph_inputs = {value.name for value in proto.graph.input}
    graph_outputs = {value.name for value in proto.graph.output}
    # The input of a node has the type of its output: functions do not convert.
    types = {
        _name(value): node.node.outputs[0].dtype or ir.DataType.FLOAT
        for node in nodes
        for value in (node.node.inputs[0], node.node.outputs[0])
    }
    names = sorted(types.keys() - graph_inputs)
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None)
        for name in names
        if name not in graph_outputs
    )
    path = folder / f"layers.{MODEL}"  # beside the weights it refers to
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns of constants of float16 that it folds later
    if (folder / KERNELS).exists():
        options.register_custom_ops_library(str((folder / KERNELS).resolve()))
    try:
        onnx.save(proto, path)
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return {**sample, **dict(zip(names, session.run(names, dict(sample)), strict=True))}
    finally:
        path.unlink(missing_ok=True)


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name
