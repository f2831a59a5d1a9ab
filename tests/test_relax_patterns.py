"""What an export spells out becomes one kernel, and entry-wise operators go into the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass
from relax_models import compare, compile_model, normal, parse, run, run_ort
from tvm.target import Target
from undense.backend.relax_build.finishing import finish_products
from undense.backend.relax_build.fusion import fuse
from undense.backend.relax_build.walker import Walk
from undense.passes.precision import ConvertFloats

RMS = """
g (float[b,s,32] x) => (float[b,s,32] y)
<float two = {2.0}, int64[1] axis = {AXIS}, float epsilon = {1e-5}>
{
  squared = Pow(x, two)
  mean = ReduceMean <keepdims = 1> (squared, axis)
  shifted = Add(mean, epsilon)
  root = Sqrt(shifted)
  inverse = Reciprocal(root)
  y = Mul(x, inverse)
}
"""

ATTENTION = """
g (float[b,4,q,16] query, float[b,2,k,16] key, float[b,2,k,16] value, float[1,1,q,k] mask)
  => (float[b,4,q,16] y)
<int64[1] group_axis = {2}, int64[5] repeats = {1,1,2,1,1}, float scale = {0.5},
 int64[4] heads = {0,4,-1,16}>
{
  key_apart = Unsqueeze(key, group_axis)
  key_twice = Expand(key_apart, repeats)
  keys = Reshape(key_twice, heads)
  value_apart = Unsqueeze(value, group_axis)
  value_twice = Expand(value_apart, repeats)
  values = Reshape(value_twice, heads)
  turned = Transpose <perm = [0, 1, 3, 2]> (keys)
  small_query = Mul(query, scale)
  small_key = Mul(turned, scale)
  product = MatMul(small_query, small_key)
  masked = Add(product, mask)
  weights = Softmax <axis = AXIS> (masked)
  y = MatMul(weights, values)
}
"""

SPELLED_OUT_MASK = """
g (float[b,2,q,16] query, float[b,2,k,16] key, float[b,2,k,16] value, int64[b,1,1,k] keep)
  => (float[b,2,q,16] y)
<float scale = {0.25}, float one = {1.0}, float lowest = {-3.4028234e38}>
{
  kept = Cast <to = 1> (keep)
  dropped = Sub(one, kept)
  mask = Mul(dropped, lowest)
  turned = Transpose <perm = [0, 1, 3, 2]> (key)
  small = Mul(query, scale)
  product = MatMul(small, turned)
  masked = Add(product, mask)
  weights = Softmax <axis = -1> (masked)
  y = MatMul(weights, value)
}
"""

CHAIN = """
g (float[b,s,24] x, float[b,s,40] other) => (float[b,s,40] y, float[b,s,40] z)
<float[24,40] w, float[40] bias>
{
  product = MatMul(x, w)
  biased = Add(product, bias)
  active = Gelu(biased)
  y = Add(active, other)
  twice = MatMul(x, w)
  more = Add(twice, y)
  z = Mul(more, twice)
}
"""


def functions(graph: str | ir.Model) -> set[str]:
    """Names of the primitive functions of a graph."""
    with Target({"kind": "llvm"}):
        walk = Walk(ir.from_proto(parse(graph)) if isinstance(graph, str) else graph)
        module = finish_products(fuse(walk.module), walk.builder.products)
    return {str(variable.name_hint) for variable in module.functions} - {"main"}


@pytest.mark.parametrize(("axis", "fused"), [("-1", True), ("2", True), ("1", False)])
def test_root_mean_square(axis: str, fused: bool) -> None:
    graph = RMS.replace("AXIS", axis)
    assert ("rms_norm" in functions(graph)) == fused
    model = parse(graph)
    x = normal(2, 3, 32)
    compare(run(compile_model(model), {"x": x})[0], run_ort(model, {"x": x})[0], 32)


@pytest.mark.parametrize(("axis", "fused"), [("-1", True), ("3", True), ("2", False)])
def test_attention_with_shared_heads(axis: str, fused: bool) -> None:
    graph = ATTENTION.replace("AXIS", axis)
    found = functions(graph)
    assert ("attention" in found) == fused
    assert fused == (not any("softmax" in name or "matmul" in name for name in found))
    model, module = parse(graph), compile_model(parse(graph))
    for queries, keys in ((1, 9), (5, 5)):
        feeds = {
            "query": normal(2, 4, queries, 16),
            "key": normal(2, 2, keys, 16),
            "value": normal(2, 2, keys, 16),
            "mask": np.where(normal(1, 1, queries, keys) > 0.5, -1e4, 0).astype(np.float32),
        }
        compare(run(module, feeds)[0], run_ort(model, feeds)[0], 16)


def in_half(graph: str) -> ir.Model:
    """The model of a graph, converted to float16."""
    model = ShapeInferencePass()(ir.from_proto(parse(graph))).model
    assert ConvertFloats(ir.DataType.FLOAT16)(model).modified
    return model


def check_half(model: ir.Model, feeds: dict[str, np.ndarray[Any, Any]], reduction: int) -> None:
    """TVM agrees with ONNX Runtime on a converted model."""
    half = {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    (actual,), (expected,) = run(compile_model(model), half), run_ort(ir.to_proto(model), half)
    assert actual.dtype == np.float16
    compare(actual, expected, reduction)


def test_root_mean_square_of_a_converted_model() -> None:
    model = in_half(RMS.replace("AXIS", "-1"))
    assert "Cast" in {node.op_type for node in model.graph}
    assert any(name.startswith("rms_norm") for name in functions(model)), functions(model)
    check_half(model, {"x": 300 * normal(2, 3, 32)}, 32)


def test_attention_of_a_converted_model() -> None:
    model = in_half(ATTENTION.replace("AXIS", "-1"))
    found = functions(model)
    assert any("attention" in name for name in found), found
    assert not any("softmax" in name or "matmul" in name for name in found), found
    feeds = {
        "query": normal(2, 4, 5, 16),
        "key": normal(2, 2, 9, 16),
        "value": normal(2, 2, 9, 16),
        "mask": np.where(normal(1, 1, 5, 9) > 0.5, -1e4, 0).astype(np.float32),
    }
    check_half(model, feeds, 16)


def test_attention_of_a_converted_model_with_a_mask_of_integers() -> None:
    model = in_half(SPELLED_OUT_MASK)
    found = functions(model)
    assert any("attention" in name for name in found), found
    assert not any("softmax" in name or "matmul" in name for name in found), found
    keep = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]])[:, None, None]  # and nothing is kept
    feeds = {name: normal(2, 2, 5, 16) for name in ("query", "key", "value")}
    check_half(model, {**feeds, "keep": keep}, 16)


def test_entry_wise_operators_go_into_the_kernel_that_only_they_follow() -> None:
    import onnx
    from onnx import numpy_helper

    model = parse(CHAIN.replace("<float[24,40] w, float[40] bias>", ""))
    for name, array in {"w": normal(24, 40), "bias": normal(40)}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    with Target({"kind": "llvm"}):
        walk = Walk(ir.from_proto(model))
        module = finish_products(fuse(walk.module), walk.builder.products)
    names = {str(variable.name_hint) for variable in module.functions} - {"main"}
    assert sorted(name.split("_")[0] for name in names) == ["dense", "dense"], names
    assert any("gelu" in name for name in names), names
    feeds = {"x": normal(2, 3, 24), "other": normal(2, 3, 40)}
    for actual, expected in zip(
        run(compile_model(model), feeds), run_ort(model, feeds), strict=True
    ):
        compare(actual, expected, 24)
