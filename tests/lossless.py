"""Models for the exact rewrites, in float64, and what each pass makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from graphs import graph
from numpy.typing import NDArray
from undense.passes.check import check
from undense.passes.lossless import LOSSLESS
from undense.passes.lossless.journal import Journal
from undense.passes.text import show

BOUND = 1e-12
"""Of the difference, relative to the largest entry: rounding of float64 and no more."""


def doubles(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    """Standard normal values over the square root of the last axis, with a mean that shows."""
    values = np.random.default_rng(seed).standard_normal(shape) + 0.25
    return values / np.sqrt(shape[-1])


def outputs(model: ir.Model, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """All outputs by name, from ONNX Runtime without its fusions, which round scales to float32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def rewritten(name: str, model: ir.Model) -> Journal:
    """Runs one pass in place, checks what comes out, and gives its sentences."""
    journal = Journal()
    text = show(model)
    modified = LOSSLESS[name](journal)(model).modified
    check(model)
    assert modified == (show(model) != text)
    assert modified == bool(journal.done)
    return journal


def text_of(name: str, model: ir.Model) -> str:
    """The graph before and after a pass, and the sentences."""
    before = show(model)
    journal = rewritten(name, model)
    refusals = [f"{refusal.name}: {refusal.reason}" for refusal in journal.refusals]
    sentences = "".join(f"{line}\n" for line in [*journal.done, *refusals])
    return f"{before}\n=== {name} ===\n\n{show(model)}\n{sentences}"


def assert_exact(
    name: str, text: str, feeds: dict[str, NDArray[Any]], *, opset: int = 20, **weights: Any
) -> None:
    """The outputs of the model stay as they are in float64."""
    model = graph(text, opset=opset, **weights)
    wanted = outputs(model, **feeds)
    assert rewritten(name, model).done
    for key, actual in outputs(model, **feeds).items():
        scale = np.abs(wanted[key]).max()
        assert np.abs(actual - wanted[key]).max() <= BOUND * scale


def assert_refused(name: str, model: ir.Model, reason: str) -> None:
    """Nothing changes, and the reason is said."""
    text = show(model)
    journal = rewritten(name, model)
    assert show(model) == text
    assert any(reason in refusal.reason for refusal in journal.refusals), journal.refusals


Golden = Callable[[str], None]
