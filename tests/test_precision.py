from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal, outputs
from numpy.typing import NDArray
from undense.backend.expected import expected_outputs
from undense.passes.check import check
from undense.passes.errors import PrecisionError, SchemeError
from undense.passes.precision import ConvertFloats, parse_dtype

HALF = {"float16": 2.0**-10, "bfloat16": 2.0**-7}

PRODUCT = "g (float[b,8] x) => (float[b,4] y) { h = MatMul(x, w)  y = Add(h, bias) }"
RMS = """g (float[b,8] x) => (float[b,8] y) {
  square = Pow(x, two)  mean = ReduceMean <keepdims = 1> (square, axis)
  shifted = Add(mean, epsilon)  root = Sqrt(shifted)  inverse = Reciprocal(root)
  norm = Mul(x, inverse)  y = Mul(norm, scale) }"""
NORM: dict[str, Any] = {
    "two": np.array(2, np.float32),
    "axis": np.array([-1]),
    "epsilon": np.array(1e-6, np.float32),
    "scale": normal(8),
}
LAYER_NORM = """g (float[b,8] x) => (float[b,8] y) {
  mean = ReduceMean <keepdims = 1> (x, axis)  apart = Sub(x, mean)
  square = Mul(apart, apart)  variance = ReduceMean <keepdims = 1> (square, axis)
  shifted = Add(variance, epsilon)  root = Sqrt(shifted)  y = Div(apart, root) }"""
ROTARY = """g (float[b,s,4] x, int64[b,s] position) => (float[b,s,4] y, float[b,s,4] z) {
  column = Unsqueeze(position, axis)  number = Cast <to = 1> (column)
  angle = Mul(number, frequency)  cosine = Cos(angle)
  y = Mul(x, cosine)  z = Mul(cosine, cosine) }"""
MASKED = """g (float[b,h,s,t] q, int64[b,1,1,t] mask) => (float[b,h,s,t] y) {
  keep = Cast <to = 1> (mask)  drop = Sub(one, keep)  far = Mul(drop, lowest)
  scores = Gelu(q)  masked = Add(scores, far)  REST }"""
LOWEST: dict[str, Any] = {
    "one": np.array(1, np.float32),
    "lowest": np.array(np.finfo(np.float32).min),
}


def converted(text: str, dtype: str = "float16", **weights: NDArray[Any]) -> ir.Model:
    model = graph(text, **weights)
    assert ConvertFloats(parse_dtype(dtype))(model).modified
    check(model)
    _check_types(model)
    return model


def _check_types(model: ir.Model) -> None:
    """What the pass wrote on values is what ONNX infers from the operators alone."""
    stated = {value.name: value.dtype for node in model.graph for value in node.outputs}
    bare = model.clone()
    for node in bare.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    inferred = ir.passes.common.ShapeInferencePass(strict_mode=True)(bare).model
    found = {value.name: value.dtype for node in inferred.graph for value in node.outputs}
    assert found == stated


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def types(model: ir.Model, *names: str) -> list[str]:
    values = ir.convenience.create_value_mapping(model.graph)
    return [values[name].dtype.numpy().name for name in names]  # type: ignore[union-attr]


def close(text: str, feeds: dict[str, NDArray[Any]], **weights: NDArray[Any]) -> ir.Model:
    """The float16 model in ONNX Runtime is within its own tolerance of the float32 model."""
    wanted = outputs(graph(text, **weights), **feeds)
    model = converted(text, **weights)
    half = {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    for name, value in outputs(model, **half).items():
        assert value.dtype == np.float16
        scale = np.abs(wanted[name]).max()
        worst = np.abs(value.astype(np.float32) - wanted[name]).max()
        assert worst <= 16 * HALF["float16"] * scale
    return model


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_activations_inputs_and_outputs_are_half(dtype: str) -> None:
    weight = normal(8, 4)
    model = converted(PRODUCT, dtype, w=weight, bias=normal(4))
    assert operators(model) == ["MatMul", "Add"]
    assert types(model, "x", "w", "bias", "h", "y") == [dtype] * 5
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    stored = tensor.numpy()
    assert stored.dtype.name == dtype
    np.testing.assert_array_equal(stored, weight.astype(stored.dtype))


def test_what_is_integer_stays_so() -> None:
    text = "g (int64[n] i) => (float[n,8] y, int64[n] j) { y = Gather(emb, i)  j = Add(i, i) }"
    model = converted(text, emb=normal(16, 8))
    assert types(model, "i", "y", "j") == ["int64", "float16", "int64"]
    assert operators(model) == ["Gather", "Add"]


def test_norm_is_float32_between_two_casts() -> None:
    x = 400 * normal(3, 8)  # whose squares are beyond float16
    model = close(RMS, {"x": x}, **NORM)
    assert types(model, "square", "mean", "inverse", "norm", "y") == ["float32"] * 4 + ["float16"]
    assert operators(model).count("Cast") == 2
    assert types(model, "two", "scale") == ["float32", "float16"]


def test_layer_norm_that_squares_by_a_product_is_float32() -> None:
    weights = {"axis": NORM["axis"], "epsilon": NORM["epsilon"]}
    model = close(LAYER_NORM, {"x": 600 * normal(3, 8)}, **weights)
    assert types(model, "apart", "square", "shifted") == ["float32"] * 3
    assert operators(model).count("Cast") == 2


def test_norm_operators_take_their_statistics_in_float32() -> None:
    text = (
        "g (float[b,8] x) => (float[b,8] y) "
        "{ y = LayerNormalization <stash_type = 10> (x, scale, bias) }"
    )
    model = converted(text, scale=normal(8), bias=normal(8))
    (node,) = model.graph
    assert node.attributes["stash_type"].as_int() == ir.DataType.FLOAT
    assert types(model, "scale", "y") == ["float16"] * 2


def test_softmax_is_float32_and_so_is_the_sum_that_only_it_reads() -> None:
    text = MASKED.replace("REST", "y = Softmax(masked)")
    mask = np.array([1, 1, 0, 0, 0])[None, None, None]
    feeds = {"q": normal(1, 2, 3, 5), "mask": mask}
    model = close(text, feeds, **LOWEST)
    assert types(model, "scores", "far", "masked", "y") == [
        "float16", "float32", "float32", "float16",
    ]  # fmt: skip
    assert "Clip" not in operators(model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mask_is_finite_where_it_meets_a_half_value(dtype: str) -> None:
    text = MASKED.replace("REST", "weights = Softmax(masked)  y = Mul(weights, masked)")
    model = converted(text, dtype, **LOWEST)
    assert types(model, "far", "masked") == ["float32", dtype]
    sample = {"q": normal(1, 2, 3, 5), "mask": np.zeros((1, 1, 1, 5), np.int64)}
    if dtype == "float16":
        sample["q"] = sample["q"].astype(np.float16)
        assert np.isfinite(outputs(model, **sample)["y"]).all()
    (found,) = expected_outputs(model, [sample]).outputs
    assert np.isfinite(found["y"]).all()


def test_angles_are_float32_and_cosines_are_cast_where_they_are_read() -> None:
    frequency = np.array([1, 0.1, 0.01, 0.001], np.float32)
    x, position = normal(1, 3, 4), np.array([[0, 1000, 30_000]])
    model = close(ROTARY, {"x": x, "position": position}, axis=np.array([2]), frequency=frequency)
    assert types(model, "frequency", "angle", "cosine") == ["float32"] * 3
    assert operators(model).count("Cast") == 3  # of the position, the cosine and the output z


def test_constant_that_both_read_is_there_in_both_types() -> None:
    text = (
        "g (float[b,8] x) => (float[b,8] y, float[b,1] z) "
        "{ y = Add(x, c)  p = Pow(x, c)  z = ReduceSum(p, axis) }"
    )
    model = converted(text, c=np.array(2, np.float32), axis=np.array([-1]))
    assert types(model, "c", "c/float32") == ["float16", "float32"]


def test_constant_nodes_are_converted() -> None:
    text = (
        "g (float[b,8] x) => (float[b,8] y) "
        "{ c = Constant <value = float {0.5}> ()  y = Mul(x, c) }"
    )
    model = converted(text)
    assert operators(model) == ["Mul"]
    assert types(model, "c") == ["float16"]


def test_subgraph_stays_float32() -> None:
    text = """g (float[b,8] x, bool c) => (float[b,8] y) {
      h = Relu(x)
      r = If (c) <
        then_branch = then () => (float[b,8] t) { t = Exp(h) },
        else_branch = other () => (float[b,8] e) { e = Add(h, k) }
      >
      y = Add(r, h) }"""
    weights = {"k": normal(8)}
    for flag in (True, False):
        close(text, {"x": normal(2, 8), "c": np.array(flag)}, **weights)


def test_output_of_a_sum_is_half_under_its_name() -> None:
    text = "g (float[b,8] x) => (float[b,8] y) { y = Exp(x) }"
    model = converted(text)
    assert operators(model) == ["Cast", "Exp", "Cast"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert types(model, "y") == ["float16"]


def test_no_cast_follows_its_opposite() -> None:
    text = """g (float[b,8] x) => (float[b,8] y) {
      e = Exp(x)  s = Sqrt(e)  t = Mul(s, e)  y = Relu(t) }"""
    model = converted(text)
    assert operators(model) == ["Cast", "Exp", "Sqrt", "Mul", "Cast", "Relu"]


def test_weight_beyond_float16_is_refused() -> None:
    weight = normal(8, 4)
    weight[2, 3] = -70_000
    with pytest.raises(PrecisionError, match=r"^w, which node .* holds -70000, .* dtype bfloat16$"):
        converted(PRODUCT, w=weight, bias=normal(4))
    converted(PRODUCT, "bfloat16", w=weight, bias=normal(4))


def test_factor_beyond_float16_is_refused_and_a_mask_is_not() -> None:
    text = "g (float[b,8] x, bool[b,8] m) => (float[b,8] y) { y = OP }"
    many = {"c": np.array(-1e9, np.float32)}
    with pytest.raises(PrecisionError, match=r"^c, which node .* \(Mul\) reads: holds -1e\+09"):
        converted(text.replace("OP", "Mul(x, c)"), **many)
    for masked in ("Where(m, x, c)", "Add(x, c)"):
        model = converted(text.replace("OP", masked), **many)
        tensor = model.graph.initializers["c"].const_value
        assert tensor is not None
        assert float(tensor.numpy()) == -65504


def test_half_model_stays_as_it_is_and_is_not_converted_to_the_other() -> None:
    text = "g (float16[b,8] x) => (float16[b,4] y) { y = MatMul(x, w) }"
    model = graph(text, w=normal(8, 4, dtype=np.float16))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not ConvertFloats(ir.DataType.FLOAT16)(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    with pytest.raises(PrecisionError, match="of float16 already; leave dtype out"):
        ConvertFloats(ir.DataType.BFLOAT16)(model)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(SchemeError, match="'int8' is not known; known are float16, bfloat16"):
        parse_dtype("int8")


@pytest.mark.parametrize("dtype", HALF)
def test_tolerance_is_that_of_the_type(dtype: str) -> None:
    model = converted(PRODUCT, dtype, w=normal(8, 4), bias=normal(4))
    found = expected_outputs(model, [{"x": normal(3, 8)}])
    assert found.tolerance["y"] >= HALF[dtype]
    assert dtype in found.derivation
