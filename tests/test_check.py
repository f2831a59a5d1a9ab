from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import exact, graph, normal
from undense.passes.check import check
from undense.passes.errors import CheckError
from undense.passes.plan import Choice, Plan
from undense.passes.replace import ReplaceDense
from undense.passes.sites import find_sites
from undense.passes.text import show

TEXT = "g (float[b,32] x) => (float[b,48] y) { h = MatMul(x, w)  y = Add(h, c) }"


def model() -> ir.Model:
    return graph(TEXT, w=normal(32, 48), c=normal(48))


def structured() -> ir.Model:
    result = model()
    (site,), _ = find_sites(result)
    ReplaceDense(Plan((Choice("w", 32, 48, "low_rank"),)), {"w": exact(site)})(result)
    return result


def test_good_models_pass_and_stay() -> None:
    for good in (model(), structured()):
        text = show(good)
        check(good)
        assert show(good) == text
        assert all(value.const_value is not None for value in good.graph.initializers.values())


def test_weights_are_not_read() -> None:
    """A weight of 8 TiB: neither memory nor a protobuf would hold it."""

    def read() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    shape, large = ir.Shape([1 << 20, 1 << 21]), model()
    large.graph.inputs[0].shape = ir.Shape(["b", 1 << 20])
    weight = large.graph.initializers["w"]
    weight.shape = shape
    weight.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=shape)
    check(large)
    assert large.graph.initializers["w"] is weight


def test_missing_function() -> None:
    broken = structured()
    broken.functions.clear()
    broken.graph[0].name = "/fc"
    with pytest.raises(CheckError, match=r"^node '/fc': .* no function for undense\.LowRank"):
        check(broken)


def test_missing_overload() -> None:
    broken = structured()
    broken.graph[0].overload = "2"
    with pytest.raises(CheckError, match=r"no function for undense\.LowRank"):
        check(broken)


def test_missing_import() -> None:
    broken = structured()
    del broken.opset_imports["undense"]
    with pytest.raises(CheckError, match="the model does not import the domain 'undense'"):
        check(broken)


def test_missing_import_in_a_function() -> None:
    broken = structured()
    (function,) = broken.functions.values()
    function[0].domain = "com.microsoft"
    with pytest.raises(CheckError, match=r"function undense::LowRank does not import .*microsoft"):
        check(broken)


def test_value_that_nothing_defines() -> None:
    broken = model()
    broken.graph[1].replace_input_with(1, ir.Value(name="nowhere"))
    with pytest.raises(CheckError, match=r"not valid ONNX: .*nowhere"):
        check(broken)


def test_read_before_it_is_written() -> None:
    broken = model()
    second = broken.graph[1]
    broken.graph.remove(second)
    broken.graph.insert_before(broken.graph[0], second)
    with pytest.raises(CheckError, match="not valid ONNX"):
        check(broken)


def test_value_that_is_written_twice() -> None:
    broken = model()
    broken.graph[0].outputs[0].name = "y"
    with pytest.raises(CheckError, match="not valid ONNX"):
        check(broken)


def test_initializer_without_data() -> None:
    broken = model()
    broken.graph.initializers["w"].const_value = None
    with pytest.raises(CheckError, match=r"^initializer 'w' has no data"):
        check(broken)


def test_bad_attribute() -> None:
    broken = graph("g (float[b,2] x) => (float[b,2] y) { y = Softmax<axis=1>(x) }")
    broken.graph[0].attributes["axis"] = ir.AttrString("axis", "last")
    with pytest.raises(CheckError, match=r"not valid ONNX: .*axis"):
        check(broken)


def test_big_constants_that_shape_inference_needs_stay() -> None:
    text = "g (float[2048] x) => (float[2048] y) { y = Add(x, w) }"
    check(graph(text, w=np.ones(2048, np.float32)))
