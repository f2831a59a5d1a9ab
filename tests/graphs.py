"""Small models from onnx text, and their outputs in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from undense.passes.plan import Choice, Plan
from undense.passes.replace import Fitted, ReplaceDense
from undense.passes.scheme import parse_scheme
from undense.passes.sites import Site, find_sites
from undense.passes.structures.base import Form, Structure
from undense.passes.structures.low_rank import LowRank


def graph(text: str, *, opset: int = 20, **weights: NDArray[Any] | ir.TensorProtocol) -> ir.Model:
    """The model of a graph in onnx text, with weights for the names that it leaves undefined.

    `__` in a keyword stands for a dot in the name of a weight.
    """
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    tensors = []
    for keyword, weight in weights.items():
        name = keyword.replace("__", ".")
        tensor = ir.tensor(weight, name=name) if isinstance(weight, np.ndarray) else weight
        tensors.append(tensor)
    model = ir.from_onnx_text(head + text, initializers=tensors)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.shape, value.dtype = (
                ir.Shape(value.const_value.shape.numpy()),
                value.const_value.dtype,
            )
    return ir.passes.common.ShapeInferencePass()(model).model


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    """Standard normal values over the square root of the last axis."""
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return np.asarray(values, dtype)


def outputs(model: ir.Model, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """All outputs by name, from stock ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def replaced(model: ir.Model, scheme: str, form: Form = "fast") -> ir.Model:
    """The model with its one site fitted without data and rewritten, in place."""
    structure = parse_scheme(scheme)
    assert isinstance(structure, Structure)
    (site,), _ = find_sites(model)
    shape = site.out_features, site.in_features
    structure = structure.resolve(*shape, site=site.name)
    factors = structure.fit(site.weight(), None, seed=0, site=site.name)
    plan = Plan((Choice(site.name, *shape[::-1], str(structure)),))
    fitted = {site.name: Fitted(structure, structure.pack(factors, form))}
    ReplaceDense(plan, fitted, form)(model)
    return model


def exact(site: Site) -> Fitted:
    """The weight of a site as factors of full rank, which lose nothing but rounding."""
    structure = LowRank(rank=min(site.out_features, site.in_features))
    factors = structure.fit(site.weight(), None, seed=0, site=site.name)
    return Fitted(structure, structure.pack(factors, "fast"))
