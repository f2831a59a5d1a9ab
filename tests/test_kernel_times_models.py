"""The models that are timed: copies of a layer that compute it, and calls that do nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import outputs
from helpers import assert_close
from undense.backend.kernel_times import Layer, Time
from undense.backend.kernel_times.built import built
from undense.backend.kernel_times.footprint import copies_of, footprint_of, reads
from undense.backend.kernel_times.models import (
    empty_inputs,
    empty_model,
    inputs_for,
    layer_model,
)
from undense.backend.target import Target
from undense.passes.decide import with_activations
from undense.passes.nodes import structured_nodes
from undense.passes.sites import find_sites
from undense.passes.structures import structures
from undense.passes.structures.base import Form
from undense.runtime import hardware

SHAPE = (96, 64)
SCHEMES = [
    str(with_activations(cls.candidates(*SHAPE)[0], "float")) for cls in structures().values()
]
GATHERS = [
    Layer(*SHAPE, scheme, gathers=True)
    for scheme in ("dense", "int_codes{group=64,activations=float}")
]


@pytest.mark.parametrize("form", ["fast", "portable"])
@pytest.mark.parametrize("scheme", ["dense", *SCHEMES])
def test_every_copy_is_the_layer(scheme: str, form: Form) -> None:
    layer = Layer(*SHAPE, scheme)
    model = layer_model(layer, 3, form)
    inputs = inputs_for(layer, 5)
    found = outputs(model, **inputs)
    assert list(found) == ["entry.0", "entry.1", "entry.2"]
    nodes = list(structured_nodes(model))
    assert len(nodes) == (0 if scheme == "dense" else 3)
    for node, entry in zip(nodes, found.values(), strict=False):
        expected = node.structure.reference(node.factors(), inputs["x"])[:1, :1]
        if form == "fast":
            assert_close(entry, expected, reduction=sum(SHAPE))
    stored = {tuple(value.name for value in node.node.inputs[1:]) for node in nodes}
    assert len(stored) == len(nodes)


@pytest.mark.parametrize("scheme", ["dense", *SCHEMES])
def test_convolutions_are_summed_up(scheme: str) -> None:
    layer = Layer(*SHAPE, scheme, convolves=True)
    model = layer_model(layer, 3, "fast")
    inputs = inputs_for(layer, 5)
    assert inputs["x"].shape == (1, SHAPE[1], 1, 5)
    (found,) = outputs(model, **inputs).values()
    assert found.shape == (1, 1, 1, 5)
    (nothing,) = outputs(empty_model(layer, 3), **inputs).values()
    assert nothing.shape == found.shape
    x, nodes = inputs["x"][0, :, 0].T, list(structured_nodes(model))
    assert len(nodes) == (0 if scheme == "dense" else 3)
    if scheme == "dense":
        parts = [x @ site.weight().T for site in find_sites(model)[0]]
    else:
        parts = [node.structure.reference(node.factors(), x) for node in nodes]
    assert_close(found[0, 0, 0], sum(parts)[:, 0], reduction=3 * sum(SHAPE))


def test_dense_copies_have_weights_of_their_own() -> None:
    sites, refusals = find_sites(layer_model(Layer(*SHAPE, "dense"), 4, "fast"))
    assert refusals == []
    weights = [site.weight() for site in sites]
    assert [weight.shape for weight in weights] == [SHAPE] * 4
    assert len({weight.tobytes() for weight in weights}) == 4
    assert np.std(weights[0]) == pytest.approx(1 / np.sqrt(SHAPE[1]), rel=0.1)


@pytest.mark.parametrize(
    ("text", "kernel", "entry"), [("llvm", "low_rank", "slice"), ("ort-cpu", "MatMul", "Slice")]
)
def test_each_copy_is_dropped_before_the_next(
    text: str, kernel: str, entry: str, tmp_path: Path
) -> None:
    layer = Layer(*SHAPE, "low_rank{rank=8}")
    session = built(layer_model(layer, 3, "fast"), Target.parse(text), tmp_path / "a", 1)
    (calls,) = session.trace(inputs_for(layer, 4), 1)
    order = [call.name for call in calls if call.name in (kernel, entry)]
    of_a_copy = [kernel, entry] if text == "llvm" else [kernel, kernel, entry]
    assert order == 3 * of_a_copy


@pytest.mark.parametrize("layer", GATHERS, ids=str)
def test_gathers_look_rows_up(layer: Layer) -> None:
    model, inputs = layer_model(layer, 2, "fast"), inputs_for(layer, 7)
    assert inputs["x"].shape == (7,)
    assert 0 <= inputs["x"].min() <= inputs["x"].max() < SHAPE[0]
    dense = layer_model(layer.dense, 2, "fast")
    assert [node.gathers for node in structured_nodes(model)] == [True] * 2 * (layer != layer.dense)
    found = outputs(model, **inputs)
    for node, entry in zip(structured_nodes(model), found.values(), strict=False):
        rows = node.structure.reference_rows(node.factors(), inputs["x"], np.dtype("f4"))
        assert_close(entry, rows[:1, :1], reduction=1)
    tables = [site.weight() for site in find_sites(dense)[0]]
    for table, entry in zip(tables, outputs(dense, **inputs).values(), strict=True):
        np.testing.assert_array_equal(entry, table[inputs["x"]][:1, :1])


def test_the_empty_call_has_the_same_inputs_and_outputs() -> None:
    layer = Layer(*SHAPE, "dense", dtype="float16")
    full, empty = layer_model(layer, 3, "fast"), empty_model(layer, 3)
    for side in ("inputs", "outputs"):
        assert [(v.name, v.dtype, v.shape) for v in getattr(full.graph, side)] == [
            (v.name, v.dtype, v.shape) for v in getattr(empty.graph, side)
        ]
    inputs = empty_inputs(layer, 2)
    found = outputs(empty, **inputs)
    assert np.concatenate(list(found.values()), axis=1).tolist() == inputs["x"][:1, :3].tolist()


def test_half_layers_keep_their_type() -> None:
    model = layer_model(Layer(*SHAPE, "low_rank{rank=4}", dtype="float16"), 1, "fast")
    assert [value.dtype for value in model.graph.inputs] == [ir.DataType.FLOAT16]
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.FLOAT16]
    cuda = layer_model(Layer(*SHAPE, "low_rank{rank=4}", dtype="float16"), 1, "cuda")
    (node,) = structured_nodes(cuda)
    assert {tensor.dtype for tensor in node.tensors.values()} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(
    ("layer", "cache", "copies"),
    [
        (Layer(1024, 1024, "dense"), 2**20, 1),
        (Layer(1024, 1024, "dense"), 2**25, 16),
        (Layer(1024, 1024, "dense", dtype="float16"), 2**25, 32),
        (Layer(1024, 1024, "low_rank{rank=64}"), 2**20, 4),
        (Layer(1024, 1024, "dense"), 2**40, 32),
        (Layer(65536, 1024, "dense"), 2**30, 2),
        (Layer(2**20, 1024, "dense"), 2**30, 1),
        (Layer(1024, 16, "dense"), 2**30, 16),
    ],
    ids=str,
)
def test_copies_stream_past_the_cache(layer: Layer, cache: int, copies: int) -> None:
    assert copies_of(layer, cache, None) == copies


@pytest.mark.parametrize(
    ("layer", "footprint", "copies"),
    [
        (Layer(1024, 1024, "dense"), 2**24, 4),
        (Layer(1024, 1024, "int_codes{bits=8}"), 2**24, 4),
        (Layer(1024, 1024, "dense"), 2**20, 1),
        (Layer(64, 64, "dense"), 2**24, 32),
    ],
    ids=str,
)
def test_copies_of_a_small_model_are_as_large_as_it_is(
    layer: Layer, footprint: int, copies: int
) -> None:
    assert copies_of(layer, 2**25, footprint) == copies


def test_the_footprint_is_of_what_a_run_reads_as_long_as_the_caches_keep_it() -> None:
    half, whole = Layer(512, 1024, "int_codes{bits=4}"), Layer(1024, 1024, "dense")
    assert footprint_of([whole], 2**25) == 2**22
    assert footprint_of([whole, half], 2**25) == 2**23
    assert footprint_of([whole] * 2, 2**22) == 2**23
    assert footprint_of([whole] * 2 + [half], 2**22) is None
    assert footprint_of([], 2**22) == 1


def test_what_is_read_to_fill_the_caches_was_written_before() -> None:
    """Memory that was not is one page of zeros."""
    assert reads(2**16)() == 1


def test_the_fixed_cost_is_taken_off() -> None:
    seconds = list(np.linspace(0.010, 0.020, 11))
    time = Time.of_calls(seconds, 0.005, 10)
    assert (time.median_ms, time.p10_ms, time.p90_ms) == pytest.approx((1.0, 0.6, 1.4))
    assert time.repeats == 11
    assert Time.of_calls(seconds, 0.5, 10).median_ms == 0


def test_last_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_CACHES", tmp_path)
    assert hardware.last_cache_bytes() == 32 * 2**20
    for number, size in enumerate(("32K", "1024K\n", "24M", "odd", "")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size)
    assert hardware.last_cache_bytes() == 24 * 2**20
