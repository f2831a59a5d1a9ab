"""A model of an embedding and two linear layers over tokens, and samples of its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphs import graph, normal
from numpy.typing import DTypeLike, NDArray

TOKENS = 100
"""Rows of the embedding."""

TEXT = """
agraph (int64[batch, tokens] ids) => (TYPE[batch, tokens, 40] y) {
    x = Gather <axis = 0> (table, ids)
    a = MatMul (x, first)
    b = Add (a, bias)
    c = Relu (b)
    y = MatMul (c, second)
}
"""
"""`TYPE` stands for that of the weights, as onnx text names it."""


def token_model(width: int = 64, *, dtype: DTypeLike = np.float32, opset: int = 20) -> ir.Model:
    """The model with an embedding of so many columns."""
    weights = {
        "table": normal(TOKENS, width, seed=1, dtype=dtype),
        "first": normal(width, 96, seed=2, dtype=dtype),
        "bias": normal(96, seed=3, dtype=dtype),
        "second": normal(96, 40, seed=4, dtype=dtype),
    }
    name = "float" if np.dtype(dtype) == np.float32 else str(np.dtype(dtype))
    return graph(TEXT.replace("TYPE", name), opset=opset, **weights)


def token_samples(count: int = 12) -> list[dict[str, NDArray[Any]]]:
    """Two rows of nine tokens each."""
    random = np.random.default_rng(0)
    return [{"ids": random.integers(0, TOKENS, (2, 9))} for _ in range(count)]
