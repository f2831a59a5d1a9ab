"""Samples of as many rows as a run is timed at."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from undense.frontend.bounds import DIM_BOUNDS
from undense.frontend.resize import is_fixed, resized


def _tokens(bounds: dict[str, tuple[int, int]] | None = None) -> ir.Model:
    """Ids, a mask over past and new tokens, and a cache that no row depends on."""
    model = graph(
        """g (int64[n,t] ids, int64[n,all] mask, float[n,past,4] cache) => (int64[n,t] y) {
            y = Identity(ids)
        }"""
    )
    model.graph.inputs[1].shape = ir.Shape(["n", "past + t"])
    if bounds:
        model.metadata_props[DIM_BOUNDS] = json.dumps(bounds)
    return model


def _sample(n: int = 2, t: int = 3, past: int = 1) -> dict[str, np.ndarray]:
    return {
        "ids": np.arange(n * t).reshape(n, t),
        "mask": np.ones((n, t + past), np.int64),
        "cache": np.zeros((n, past, 4), np.float32),
    }


def _shapes(sample: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    return [sample[name].shape for name in ("ids", "mask", "cache")]


def test_the_last_dimension_takes_the_rows_and_a_cache_stays_as_long():
    found = resized(_sample(), _tokens(), (1, 8))
    assert _shapes(found[1]) == [(1, 1), (1, 2), (1, 1, 4)]
    assert _shapes(found[8]) == [(1, 8), (1, 9), (1, 1, 4)]
    np.testing.assert_array_equal(found[8]["ids"][0], [0, 1, 2, 0, 1, 2, 0, 1])


def test_bounds_hand_the_rest_to_the_dimension_before():
    found = resized(_sample(), _tokens({"t": (1, 4), "n": (1, 8)}), (8, 6))
    assert _shapes(found[8])[0] == (2, 4)
    assert _shapes(found[6])[0] == (2, 3)
    found = resized(_sample(), _tokens({"t": (2, 512), "n": (2, 8)}), (32,))
    assert _shapes(found[32])[0] == (2, 16)


@pytest.mark.parametrize(
    ("bounds", "rows"), [({"n": (2, 8)}, 1), ({"t": (1, 4), "n": (1, 2)}, 9), ({"t": (4, 8)}, 3)]
)
def test_rows_that_the_bounds_do_not_allow_are_left_out(bounds, rows):
    assert resized(_sample(), _tokens(bounds), [rows]) == {}


def test_nothing_can_be_repeated_from_an_empty_input():
    model = graph("g (int64[t] ids, float[t,0] x, float[t] z) => (float[t] y) { y = Identity(z) }")
    sample = {"ids": np.zeros(2, np.int64), "x": np.zeros((2, 0), np.float32)}
    assert resized({**sample, "z": np.zeros(0, np.float32)}, model, [3]) == {}


def test_a_model_of_fixed_shapes_takes_its_sample_whatever_is_asked():
    model = graph("g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }")
    sample = {"x": np.ones((2, 3), np.float32)}
    found = resized(sample, model, (1, 32))
    assert [found[rows]["x"].shape for rows in (1, 32)] == [(2, 3), (2, 3)]


def test_without_a_name_of_what_is_dynamic_there_is_no_sample():
    model = graph("g (float[t,4] x) => (float[t,4] y) { y = Identity(x) }")
    model.graph.inputs[0].shape = ir.Shape([None, 4])
    assert resized({"x": np.zeros((3, 4), np.float32)}, model, [1, 8]) == {}


def test_a_model_is_fixed_where_no_input_can_have_another_shape():
    fixed = graph("g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }")
    assert is_fixed(fixed)
    assert not is_fixed(_tokens())
    fixed.graph.inputs[0].shape = ir.Shape([None, 3])
    assert not is_fixed(fixed)
    fixed.graph.inputs[0].shape = None
    assert not is_fixed(fixed)
