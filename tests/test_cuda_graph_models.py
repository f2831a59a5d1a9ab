"""Models whose kernels are launched as CUDA graphs, on the emulated device."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cuda_emulation
import numpy as np
import onnx_ir as ir
import pytest
import tvm
from relax_models import normal, parse
from tvm import relax
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.relax_build import build
from undense.backend.target import Target
from undense.passes.errors import TargetError

pytestmark = pytest.mark.usefixtures("cuda_device")

TARGET = Target.parse("cuda -arch=sm_90")
BOUNDS = {"b": [1, 4], "n": [1, 4], "p": [0, 16]}

LAYER = """g (float[b, n, 64] x, float[b, 1, p, 64] pk, float[b, 1, p, 64] pv)
    => (float[b, n, 64] y, float[b, 1, p + n, 64] key, float[b, 1, p + n, 64] value) {
    q = MatMul(x, w)
    k = MatMul(x, w)
    a, key, value = Attention <q_num_heads = 1, kv_num_heads = 1> (q, k, x, , pk, pv)
    h = MatMul(a, w)
    g = Gelu(h)
    m = MatMul(g, w)
    y = Add(m, x)
}"""


PRODUCTS = """g (float[b, n, 64] x) => (float[b, n, 64] y, float[b, n, 64] z) {
    h = MatMul(x, w)
    i = MatMul(h, w)
    j = MatMul(i, w)
    y = Gelu(j)
    m = MatMul(j, w)
    z = Add(m, x)
}"""


def layer(bounds: dict[str, Any], text: str = LAYER) -> ir.Model:
    model = ir.from_proto(parse(text.replace("p + n", "t"), 23))
    weight = ir.tensor(normal(64, 64) / 8)
    value = ir.Value(name="w", const_value=weight, type=ir.TensorType(weight.dtype))
    value.shape = weight.shape
    for node in model.graph:
        for index, used in enumerate(node.inputs):
            if used is not None and used.name == "w":
                node.replace_input_with(index, value)
    model.graph.initializers["w"] = value
    model.metadata_props["undense.dim_bounds"] = json.dumps(bounds)
    return model


def device_runner(model: ir.Model, wanted: Any) -> Callable[..., list[Any]]:
    """Calls a model, with graphs or without; its results stay on the device."""
    target = TARGET.with_graphs(wanted)
    with device_code_by(lambda source, _: cuda_emulation.compile(source, EMULATED_HEADERS)):
        module = build(model, target)
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(module.executable, device)
    weights = [tvm.runtime.tensor(weight, device) for weight in module.weights.values()]

    def call(*arrays: np.ndarray[Any, Any]) -> list[Any]:
        inputs = [tvm.runtime.tensor(array, device) for array in arrays]
        return list(machine["main"](*inputs, *weights))

    return call


def runner(wanted: Any) -> Callable[..., list[np.ndarray[Any, Any]]]:
    """Calls the layer, with graphs or without."""
    call = device_runner(MODEL, wanted)
    return lambda *arrays: [output.numpy() for output in call(*arrays)]


MODEL = layer(BOUNDS)


def given(batch: int, tokens: int, past: int) -> list[np.ndarray[Any, Any]]:
    return [normal(batch, tokens, 64), *(normal(batch, 1, past, 64) for _ in range(2))]


def test_what_does_not_depend_on_the_cache_is_launched_again_while_it_grows():
    plain, graphs = runner(False), runner(["b", "n"])
    launches = []
    for past in (3, 4, 5, 6):
        inputs = given(1, 1, past)
        before = cuda_emulation.graph_launches()
        found = graphs(*inputs)
        launches.append(cuda_emulation.graph_launches() - before)
        for one, other in zip(found, plain(*inputs), strict=True):
            np.testing.assert_array_equal(one, other)
    # The first call captures; the cache is another length in each call.
    assert launches[1] > 0
    assert launches[1:] == [launches[1]] * 3


def test_other_lengths_have_graphs_of_their_own():
    plain, graphs = runner(False), runner(True)
    for shape in ((1, 1, 2), (2, 3, 0), (1, 1, 2), (2, 3, 0), (4, 4, 16)):
        inputs = given(*shape)
        for one, other in zip(graphs(*inputs), plain(*inputs), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("graphs", [False, ["b", "n"]])
def test_results_are_not_written_again_by_later_calls(graphs: Any):
    call = device_runner(layer(BOUNDS, PRODUCTS), graphs)
    before = cuda_emulation.graph_launches()
    kept = []
    for shape in ((1, 2), (1, 2), (2, 1), (1, 2), (4, 4), (1, 2)):
        results = call(normal(*shape, 64))
        kept.append((results, [result.numpy().copy() for result in results]))
    assert (cuda_emulation.graph_launches() > before) == bool(graphs)
    for results, seen in kept:
        for result, copy in zip(results, seen, strict=True):
            np.testing.assert_array_equal(result.numpy(), copy)
    places = {result.data_ptr() for results, _ in kept for result in results}
    assert len(places) == 2 * len(kept)


@pytest.mark.parametrize(
    ("symbols", "bounds", "named"),
    [
        (["c"], BOUNDS, "no dimension 'c'; dynamic are b, n, p"),
        (["b"], {"n": [1, 4]}, "dimension 'b' has no upper bound"),
        (True, {}, "no dynamic dimension has an upper bound"),
    ],
)
def test_dimensions_that_cannot_be_captured_are_refused(
    symbols: Any, bounds: dict[str, Any], named: str
):
    with pytest.raises(TargetError, match=named):
        build(layer(bounds), TARGET.with_graphs(symbols))


def test_a_bound_may_be_given_and_holds():
    target = TARGET.with_graphs(["b=2", "n=1"])
    with device_code_by(lambda source, _: cuda_emulation.compile(source, EMULATED_HEADERS)):
        module = build(layer({"n": [1, 4]}), target)
    assert module.dimension_bounds["b"][1] == 2
    assert module.dimension_bounds["n"][1] == 1


@pytest.mark.parametrize("text", ["b=0", "b=x", "b="])
def test_a_bound_is_a_length(text: str):
    with pytest.raises(TargetError, match="is no dimension; write tokens or tokens=8"):
        TARGET.with_graphs([text])


def test_graphs_are_for_cuda():
    with pytest.raises(TargetError, match="CUDA graphs are for target cuda, not for llvm"):
        Target.parse("llvm").with_graphs(True)
