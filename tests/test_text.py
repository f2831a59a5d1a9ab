from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from graphs import graph, normal
from undense.passes.text import show

EVERYTHING = """g (bool c, float[b,2,?] x) => (float[b,2,?] y, int64[n] z) {
  s = Shape<end=2, start=0>(x)
  k = Constant<value=float {0.5}>()
  big = Constant<value=float[2] {1, 2}>()
  v, w2 = Split<axis=2, num_outputs=2>(x)
  q = Clip(v, , k)
  y = If (c) <
    then_branch = yes () => (float[b,2,?] p) { t = Relu(x)  p = Mul(t, w) },
    else_branch = no () => (float[b,2,?] r) { r = Identity(x) }
  >
  z = Resize<mode="nearest", scales=[1.0, 2.5]>(s, q, w2, big)
}"""


def _model(text: str) -> ir.Model:
    head = '<ir_version: 10, opset_import: ["" : 20]>\n'
    return ir.from_onnx_text(head + text, initializers=[ir.tensor(np.ones(2, "f4"), name="w")])


def test_everything(golden: Callable[[str], None]) -> None:
    golden(show(_model(EVERYTHING)))


def test_function_with_attributes(golden: Callable[[str], None]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "lib" : 1]>
    g (float[b,2] x) => (float[b,2] y) { y = lib.Scale<axis=1>(x) }
    <opset_import: ["" : 20], domain: "lib">
    Scale <axis> (x) => (y) { h = Softmax<axis: int = @axis>(x)  y = Neg(h) }
    """
    model = ir.from_onnx_text(text)
    ((key, function),) = model.functions.items()
    del model.functions[key]
    function.overload = "2"
    model.functions[function.identifier()] = function
    model.graph[0].overload = "2"
    golden(show(model))


def test_names_of_nodes_and_inner_values_do_not_matter() -> None:
    text = "g (float[b,32] x) => (float[b,32] y) { h = MatMul(x, w)  k = Relu(h)  y = Neg(k) }"
    first = graph(text, w=normal(32, 32))
    second = graph(
        text.replace("k", "other").replace("h =", "a =").replace("(h", "(a"),
        w=normal(32, 32, seed=1),
    )
    second.graph[0].name = "another name"
    assert show(first) == show(second)


def test_order_of_initializers_does_not_matter() -> None:
    text = "g (float[b,32] x) => (float[b,32] y) { h = MatMul(x, v)  y = MatMul(h, w) }"
    a, b = normal(32, 32), normal(32, 32)
    assert show(graph(text, v=a, w=b)) == show(graph(text, w=b, v=a))


def test_structure_matters() -> None:
    text = "g (float[b,32] x) => (float[b,32] y) {{ h = MatMul(x, w)  y = Sub({}) }}"
    first, second = (graph(text.format(args), w=normal(32, 32)) for args in ("h, x", "x, h"))
    assert show(first) != show(second)


def test_weights_are_neither_shown_nor_read() -> None:
    def read() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    text = "g (float[b,32] x) => (float[b,32] y) { y = MatMul(x, w) }"
    model = graph(text, w=normal(32, 32))
    shape = ir.Shape([32, 32])
    model.graph.initializers["w"].const_value = ir.LazyTensor(
        read, dtype=ir.DataType.FLOAT, shape=shape
    )
    assert "const w: float[32,32]" in show(model)
