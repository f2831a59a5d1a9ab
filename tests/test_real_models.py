"""The real models on both engines: equal to PyTorch, and as exact as ONNX Runtime in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from relax_models import compile_model, run, run_ort
from undense.backend.reference import run_reference
from undense.frontend.load import load
from undense.runtime.compare import relative_error

from benchmarks import data
from benchmarks.models import efficientnet, minilm, smollm2

EPSILON = float(np.finfo(np.float32).eps)
Feed = Mapping[str, NDArray[Any]]
Outputs = Sequence[NDArray[Any]]


def hold(model: ir.Model, calls: Sequence[tuple[Feed, Outputs]]) -> None:
    """Each call is a feed and the outputs of PyTorch for it, in order."""
    compiled, proto = compile_model(model), ir.to_proto(model)
    for feed, torch_outputs in calls:
        exact = list(run_reference(model, feed).values())
        engines = run(compiled, feed), run_ort(proto, feed), torch_outputs
        for outputs in zip(exact, *engines, strict=True):
            wanted, tvm_error, ort_error, torch_error = (
                output if i == 0 else relative_error(output, outputs[0])
                for i, output in enumerate(outputs)
            )
            assert all(output.shape == wanted.shape for output in outputs)
            assert tvm_error <= 4 * max(ort_error, EPSILON)
            assert max(torch_error, ort_error) < 1e-4


def test_minilm():
    module = minilm.load()
    calls = []
    for batch, tokens in [(1, 5), (3, 17)]:
        args = minilm.example_args(batch, tokens)
        feed = dict(
            zip(("input_ids", "attention_mask"), map(torch.Tensor.numpy, args), strict=True)
        )
        with torch.inference_mode():
            calls.append((feed, [module(*args).numpy()]))
    hold(load(module, minilm.example_args(), minilm.dynamic_shapes()), calls)


@pytest.mark.slow
def test_efficientnet():
    module = efficientnet.load()
    images = efficientnet.read(data.images()[:2])
    with torch.inference_mode():
        logits = module(torch.from_numpy(images)).numpy()
    model = load(module, efficientnet.example_args(), efficientnet.dynamic_shapes())
    hold(model, [({"image": images}, [logits])])


@pytest.mark.parametrize(
    "layers", [2, pytest.param(smollm2.LAYERS, marks=pytest.mark.slow)], ids=["part", "whole"]
)
def test_smollm2_prefill_and_decode(layers: int):
    """A text in one call, its next token with the cache of that call, and a batch of both kinds."""
    module = smollm2.load(layers)
    text = np.array([smollm2.tokenizer().encode(data.evaluation_text()).ids[:40]])

    def call(ids: NDArray[np.int64], past: Feed) -> tuple[Feed, list[NDArray[Any]]]:
        cache = {name.removeprefix("past_"): torch.from_numpy(part) for name, part in past.items()}
        with torch.inference_mode():
            outputs = module(torch.from_numpy(ids), cache)
        return {"input_ids": ids, **past}, [output.numpy() for output in outputs.values()]

    prefill = call(text[:, :33], smollm2.empty_cache(layers=layers))
    names = [f"past_{name}" for name in smollm2.CACHE[: 2 * layers]]
    cache = dict(zip(names, prefill[1][1:], strict=True))
    decode = call(text[:, 33:34], cache)
    doubled = {name: np.concatenate([part, part[:, :, ::-1]]) for name, part in cache.items()}
    both = call(np.concatenate([text[:, 33:38], text[:, :5]]), doubled)
    model = load(module, smollm2.example_args(layers=layers), smollm2.dynamic_shapes(layers))
    hold(model, [prefill, decode, both])
