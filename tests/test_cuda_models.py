"""Models built for CUDA and run on the emulated device, against numpy in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import cuda_emulation
import numpy as np
import onnx_ir as ir
import pytest
import tvm
from cuda_kernels import Array, array, rounding
from graphs import graph, normal, replaced
from tvm import relax
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.package import prepare
from undense.backend.reference import run_reference
from undense.backend.relax_build import TvmModule, build
from undense.backend.target import Target

pytestmark = pytest.mark.usefixtures("cuda_device")

TARGET = Target.parse("cuda -arch=sm_90")
VOCABULARY, WIDTH, HIDDEN = 50, 32, 72

ROUNDINGS = 32
"""Of the values on a path through the model, each of which adds to the error."""

MODEL = """g (int64[batch, length] ids, FLOAT[batch, length, 32] extra)
    => (FLOAT[batch, length, 50] logits)
    <int64[4] heads = {0, 0, 4, 8}, int64[3] joined = {0, 0, 32}> {
    found = Gather(table, ids)
    first = Add(found, extra)
    normed = LayerNormalization <axis = -1> (first, scale, bias)
    q = MatMul(normed, wq)
    k = MatMul(normed, wk)
    v = MatMul(normed, wv)
    qs = Reshape(q, heads)
    ks = Reshape(k, heads)
    vs = Reshape(v, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (qs)
    kh = Transpose <perm = [0, 2, 3, 1]> (ks)
    vh = Transpose <perm = [0, 2, 1, 3]> (vs)
    products = MatMul(qh, kh)
    scores = Mul(products, root)
    shares = Softmax <axis = -1> (scores)
    mixed = MatMul(shares, vh)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    flat = Reshape(back, joined)
    projected = MatMul(flat, wo)
    attended = Add(first, projected)
    again = RMSNormalization <axis = -1> (attended, scale)
    up = MatMul(again, w1)
    biased = Add(up, b1)
    active = Gelu(biased)
    down = MatMul(active, w2)
    shifted = Add(down, bias)
    second = Add(attended, shifted)
    last = LayerNormalization <axis = -1> (second, scale, bias)
    turned = Transpose <perm = [1, 0]> (table)
    logits = MatMul(last, turned)
}"""


def transformer(dtype: str) -> ir.Model:
    """One layer, whose table of embeddings is its head too."""
    shapes = {
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH)),
        "table": (VOCABULARY, WIDTH),
        "w1": (WIDTH, HIDDEN),
        "w2": (HIDDEN, WIDTH),
        "b1": (HIDDEN,),
        "bias": (WIDTH,),
    }
    weights = {
        name: normal(*shape, seed=seed, dtype=dtype)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    weights["scale"] = (1 + normal(WIDTH, seed=20)).astype(dtype)
    weights["root"] = np.array(8**-0.5, dtype)
    text = MODEL.replace("FLOAT", {"float32": "float", "float16": "float16"}[dtype])
    return graph(text, opset=23, **weights)


def built(model: ir.Model) -> tuple[TvmModule, str]:
    """The model compiled for the emulated device, and the CUDA source of its kernels."""
    sources = []

    def code(source: str, architectures: Any) -> bytes:
        sources.append(source)
        return cuda_emulation.compile(source, EMULATED_HEADERS)

    prepare(model, TARGET, "fast", with_onnx=False)
    with device_code_by(code):
        module = build(model, TARGET)
    (source,) = sources
    return module, source


class Machine:
    """A module on the device, with its weights there."""

    def __init__(self, module: TvmModule) -> None:
        self.inputs, self.device = module.inputs, tvm.cuda(0)
        self.machine = relax.VirtualMachine(module.executable, self.device)
        self.weights = [self._put(weight) for weight in module.weights.values()]

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        given = [self._put(feeds[signature.name]) for signature in self.inputs]
        return [output.numpy() for output in self.machine["main"](*given, *self.weights)]

    def _put(self, values: Array) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(values), self.device)


def functions(source: str) -> set[str]:
    """The functions that have kernels; one for each tiling, numbered, counts once."""
    names = re.findall(r"__global__ void [^;{]*?(\w+?)_kernel(?:_\d+)?\(", source)
    return set(names)


def check(model: ir.Model, outputs: list[Array], feeds: Mapping[str, Array]) -> None:
    """Fails unless the outputs are those of float64 but for rounding."""
    wanted = run_reference(model, feeds)
    for got, (name, exact) in zip(outputs, wanted.items(), strict=True):
        assert got.shape == exact.shape
        error = np.linalg.norm(got.astype(np.float64) - exact)
        bound = ROUNDINGS * rounding(got.dtype.name) * np.linalg.norm(exact)
        assert error <= bound, f"{name} is off by {error / bound:.3g} times the bound"


def feeds_of(dtype: str, batch: int, length: int) -> dict[str, Array]:
    ids = np.random.default_rng(length).integers(0, VOCABULARY, (batch, length))
    return {"ids": ids, "extra": array(dtype, batch, length, WIDTH, seed=batch)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_transformer_of_any_batch_and_length(dtype: str) -> None:
    machine = Machine(built(transformer(dtype))[0])
    for batch, length in ((1, 1), (3, 1), (1, 9), (2, 17), (5, 14), (0, 3), (2, 0)):
        feeds = feeds_of(dtype, batch, length)
        (logits,) = machine(feeds)
        assert logits.dtype == dtype
        check(transformer(dtype), [logits], feeds)


def test_embeddings_and_head_are_stored_once() -> None:
    module, source = built(transformer("float32"))
    assert sum(name.startswith("table") for name in module.weights) == 1
    assert "gather" in functions(source)


@pytest.mark.parametrize(
    "scheme", ["dense", "low_rank{rank=5}", "int_codes{bits=4,group=32}", "trit_planes{planes=2}"]
)
def test_bias_activation_and_residual_are_in_the_kernel(scheme: str) -> None:
    text = """g (float[n, 64] x, float[n, 40] r) => (float[n, 40] y) {
        product = MatMul(x, w)
        biased = Add(product, b)
        active = Gelu(biased)
        y = Add(r, active)
    }"""

    def made() -> ir.Model:
        model = graph(text, w=normal(64, 40), b=normal(40, seed=1))
        return model if scheme == "dense" else replaced(model, scheme)

    module, source = built(made())
    assert len(functions(source)) == (2 if scheme.startswith("low_rank") else 1)
    assert not module.generic_functions
    machine = Machine(module)
    for rows in (0, 1, 9, 33, 70):
        feeds = {"x": array("float32", rows, 64), "r": array("float32", rows, 40, seed=1)}
        check(made(), machine(feeds), feeds)


def test_a_norm_takes_its_scale_and_bias_with_it() -> None:
    text = """g (float16[n, 40] x) => (float16[n, 40] y) {
        y = LayerNormalization <axis = -1> (x, s, b)
    }"""
    weights = {"s": normal(40, dtype="float16"), "b": normal(40, seed=1, dtype="float16")}
    module, source = built(graph(text, **weights))
    assert len(functions(source)) == 1
    for rows in (0, 1, 70):
        feeds = {"x": array("float16", rows, 40)}
        check(graph(text, **weights), Machine(module)(feeds), feeds)
