from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph, normal, outputs
from numpy.typing import NDArray
from undense.passes.check import check
from undense.passes.duplicates import MergeDuplicateWeights
from undense.passes.sites import find_sites

HEAD = "g (int64[n] i) => (float[n,64] y) { e = Gather(emb, i)  y = MatMul(e, val_0) }"
TWO = "g (float[b,32] x) => (float[b,32] y) { h = MatMul(x, a)  y = MatMul(h, b2) }"
SQUARE = normal(32, 32)


def merged(text: str, **weights: NDArray[Any]) -> tuple[ir.Model, bool]:
    model = graph(text, **weights)
    modified = MergeDuplicateWeights()(model).modified
    check(model)
    return model, modified


def test_transposed_copy_is_tied_again() -> None:
    table, i = normal(64, 32), np.array([3, -1])
    dense = outputs(graph(HEAD, emb=table, val_0=table.T.copy()), i=i)["y"]
    model, modified = merged(HEAD, emb=table, val_0=table.T.copy())
    assert modified
    assert list(model.graph.initializers) == ["emb"]
    (site,), _ = find_sites(model)
    assert [use.form for use in site.uses] == ["gather", "matmul"]
    np.testing.assert_array_equal(outputs(model, i=i)["y"], dense)


def test_the_gathered_one_stays() -> None:
    table = normal(64, 32)
    text = "g (int64[n] i) => (float[n,64] y) { e = Gather(z, i)  y = MatMul(e, a) }"
    model, _ = merged(text, a=table.T.copy(), z=table)
    assert list(model.graph.initializers) == ["z"]


@pytest.mark.parametrize("copy", [SQUARE.copy(), SQUARE.T.copy()])
def test_square_copies(copy: NDArray[Any]) -> None:
    x = normal(3, 32)
    dense = outputs(graph(TWO, a=SQUARE, b2=copy), x=x)["y"]
    model, modified = merged(TWO, a=SQUARE, b2=copy)
    assert modified
    assert list(model.graph.initializers) == ["a"]
    np.testing.assert_array_equal(outputs(model, x=x)["y"], dense)


def _changed(value: float) -> NDArray[Any]:
    copy = SQUARE.copy()
    copy[31, 30] = value
    return copy


@pytest.mark.parametrize("other", [_changed(1.0), SQUARE.astype(np.float16).astype(np.float32)])
def test_nearly_equal_weights_stay_apart(other: NDArray[Any]) -> None:
    model, modified = merged(TWO, a=SQUARE, b2=other)
    assert not modified
    assert list(model.graph.initializers) == ["a", "b2"]


def test_signs_of_zero_are_kept() -> None:
    zeros = np.zeros((32, 32), np.float32)
    assert not merged(TWO, a=zeros, b2=-zeros)[1]


def test_equal_nans_are_equal() -> None:
    assert merged(TWO, a=_changed(np.nan), b2=_changed(np.nan))[1]


def test_small_copies_stay() -> None:
    text = "g (float[b,4] x) => (float[b,4] y) { h = MatMul(x, a)  y = MatMul(h, b2) }"
    assert not merged(text, a=normal(4, 4), b2=normal(4, 4))[1]


def test_types_are_not_mixed() -> None:
    text = """g (float[b,32] x) => (float[b,32] y) {
      h = MatMul(x, a)  v = Cast<to=1>(b2)  y = MatMul(h, v)
    }"""
    half = SQUARE.astype(np.float16)
    assert not merged(text, a=half.astype(np.float32), b2=half)[1]


def test_inputs_and_outputs_stay() -> None:
    model = graph(TWO, a=SQUARE, b2=SQUARE.copy())
    model.graph.outputs.append(model.graph.initializers["b2"])
    assert not MergeDuplicateWeights()(model).modified


def test_external_copies_are_not_held(tmp_path: Path) -> None:
    table = normal(64, 32)
    model = graph(HEAD, emb=table, val_0=table.T.copy())
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    assert MergeDuplicateWeights()(loaded).modified
    (kept,) = loaded.graph.initializers.values()
    assert isinstance(kept.const_value, ir.ExternalTensor)
    assert kept.const_value.raw is None, "the file is still mapped"
