"""Times of sites: for which model the kernels of its layers are timed."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import graph, normal
from undense.backend.kernel_times import Layer, Time, sites
from undense.backend.kernel_times.reference import Reference
from undense.backend.target import Target
from undense.passes.sites import find_sites

TIME = Time(1.0, 1.0, 1.0, 3)
TIED = """g (int64[n] i, float[n,64] x) => (float[n,256] y, float[n,64] z) {
    e = Gather(table, i)  a = Add(e, x)  t = Transpose<perm=[1,0]>(table)  y = MatMul(a, t)
    b = MatMul(x, own)  c = MatMul(b, own)  d = Gather(other, i)  z = Add(c, d)
}"""


@pytest.mark.parametrize(("cache", "footprint"), [(2**20, 2**17), (2**15, None)])
def test_the_footprint_is_that_of_weights_that_are_read_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, cache: int, footprint: int | None
) -> None:
    """A table that is tied and a weight of two nodes count once, one only looked up not at all."""
    weights = {"table": normal(256, 64), "own": normal(64, 64), "other": normal(512, 64)}
    found: list[Any] = []

    def times(
        layers: dict[Layer, set[int]], *_: Any, **options: Any
    ) -> dict[Layer, dict[int, Time]]:
        found.append(options["footprint"])
        return {layer: {1: Time(1.0, 1.0, 1.0, 3)} for layer in layers}

    monkeypatch.setattr(sites, "kernel_times", times)
    monkeypatch.setattr(sites, "cache_bytes", lambda _: cache)
    model_sites = find_sites(graph(TIED, **weights))[0]
    assert len(model_sites) == 3
    none = {site.name: [] for site in model_sites}
    taken = sites.site_times(model_sites, none, Target.parse("ort-cpu"), "fast", [1])
    assert found == [footprint]
    assert taken.milliseconds["own"] == {"dense": {1: 2.0}}
    assert taken.dense(1) == 5.0  # the table is looked up and multiplied by
    own = Layer(64, 64, "dense")
    assert taken.references == ({1: Reference(own, 1, footprint, TIME)} if footprint else {})


def test_what_only_looks_up_rows_has_no_product_to_be_timed_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = graph("g (int64[n] i) => (float[n,64] y) { y = Gather(t, i) }", t=normal(64, 64))
    times = lambda layers, *_, **__: {layer: {1: Time(1.0, 1.0, 1.0, 3)} for layer in layers}  # noqa: E731
    monkeypatch.setattr(sites, "kernel_times", times)
    found = find_sites(model)[0]
    taken = sites.site_times(found, {"t": []}, Target.parse("ort-cpu"), "fast", [1])
    assert taken.references == {}


@pytest.mark.parametrize(("target", "convolves"), [("ort-cpu", True), ("llvm", False)])
def test_what_takes_the_place_of_a_convolution_transposes_in_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, target: str, convolves: bool
) -> None:
    text = "g (float[n,64,4,4] x) => (float[n,32,4,4] y) { y = Conv(x, w) }"
    model = graph(text, w=normal(32, 64).reshape(32, 64, 1, 1))
    found: list[Layer] = []

    def times(layers: dict[Layer, set[int]], *_: Any, **__: Any) -> dict[Layer, dict[int, Time]]:
        found.extend(layers)
        time = Time(1.0, 1.0, 1.0, 3)
        return {layer: dict.fromkeys(counts, time) for layer, counts in layers.items()}

    monkeypatch.setattr(sites, "kernel_times", times)
    sites.site_times(find_sites(model)[0], {"w": []}, Target.parse(target), "fast", [1])
    assert found == [Layer(32, 64, "dense", convolves=convolves)]


def test_rows_that_are_looked_up_have_one_time_whatever_x_is_rounded_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = graph("g (int64[n] i) => (float[n,64] y) { y = Gather(t, i) }", t=normal(64, 64))
    found: list[Layer] = []

    def times(layers: dict[Layer, set[int]], *_: Any, **__: Any) -> dict[Layer, dict[int, Time]]:
        found.extend(layers)
        return {layer: dict.fromkeys(counts, TIME) for layer, counts in layers.items()}

    monkeypatch.setattr(sites, "kernel_times", times)
    schemes = [f"int_codes{{group=64,activations={name}}}" for name in ("float", "int8")]
    taken = sites.site_times(
        find_sites(model)[0], {"t": schemes}, Target.parse("ort-cpu"), "fast", [1]
    )
    assert [layer.scheme for layer in found] == ["dense", schemes[0]]
    assert set(taken.milliseconds["t"]) == {"dense", *schemes}
