"""The report counts the bytes that an artifact stores, for each site and for all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_emulation
import onnx_ir as ir
import pytest
import undense
from graphs import graph, normal
from undense.backend.cuda.module import device_code_by
from undense.backend.cuda.nvcc import EMULATED_HEADERS
from undense.backend.option_bytes import OptionBytes
from undense.backend.target import Target
from undense.inspection import inspect
from undense.passes.sites import find_sites
from undense.runtime.artifact import WEIGHTS

TEXT = """
agraph (float[rows, 256] x) => (float[rows, 96] y) {
    a = MatMul (x, first)
    y = MatMul (a, second)
}
"""


def _model() -> ir.Model:
    return graph(TEXT, first=normal(256, 128), second=normal(128, 96))


def _emulated(source: str, architectures: Sequence[str]) -> bytes:
    return cuda_emulation.compile(source, EMULATED_HEADERS)


def _on_gpu(folder: Path, scheme: str, **options: Any) -> dict[str, Any]:
    with device_code_by(_emulated):
        undense.compile(
            _model(),
            target="cuda -arch=sm_90",
            scheme=scheme,
            output=folder,
            lossless=False,
            **options,
        )
    return inspect(folder)


def _sites(report: dict[str, Any]) -> dict[str, float]:
    return {site["name"]: site["bits_per_weight"] for site in report["sites"]}


def _stored(folder: Path, site: str) -> int:
    """Bytes of the tensors of a site, read from the file itself."""
    data = (folder / WEIGHTS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    spans = [entry["data_offsets"] for name, entry in header.items() if name.startswith(f"{site}.")]
    return sum(end - start for start, end in spans)


def test_a_model_that_was_not_compiled_is_counted_in_its_type(tmp_path: Path) -> None:
    ir.save(_model(), tmp_path / "single.onnx")
    assert _sites(inspect(tmp_path / "single.onnx")) == {"first": 32, "second": 32}
    text = TEXT.replace("float[", "float16[")
    half = graph(text, first=normal(256, 128).astype("float16"),
                 second=normal(128, 96).astype("float16"))  # fmt: skip
    ir.save(half, tmp_path / "half.onnx")
    assert _sites(inspect(tmp_path / "half.onnx")) == {"first": 16, "second": 16}


@pytest.mark.parametrize("target", ["llvm", "ort-cpu"])
def test_factors_on_cpus_are_float32(target: str, tmp_path: Path) -> None:
    undense.compile(
        _model(), target=target, lossless=False, scheme="low_rank{rank=16}", output=tmp_path / "m"
    )
    report = inspect(tmp_path / "m")
    weights = 256 * 128, 128 * 96
    first, second = (32 * 16 * total / n for total, n in zip((384, 224), weights, strict=True))
    assert _sites(report) == {"first": pytest.approx(first), "second": pytest.approx(second)}
    assert report["bytes"]["after"] == sum(
        bits * n / 8 for bits, n in zip((first, second), weights, strict=True)
    )
    assert report["warnings"] == []


@pytest.mark.usefixtures("cuda_device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factors_of_half_types_take_two_bytes(dtype: str, tmp_path: Path) -> None:
    report = _on_gpu(tmp_path / "m", "low_rank{rank=48}", dtype=dtype)
    weights = {"first": 256 * 128, "second": 128 * 96}
    # The rank is 48 outputs of the one factor, and inputs of the other, of which 64 are stored.
    stored = {"first": 2 * (48 * 256 + 128 * 64), "second": 2 * (48 * 128 + 96 * 64)}
    for name, bits in _sites(report).items():
        assert bits == 8 * stored[name] / weights[name]
        assert stored[name] == _stored(tmp_path / "m", name)
    assert report["bytes"]["after"] == sum(stored.values())
    assert report["bytes"]["before"] == 4 * sum(weights.values())
    assert report["warnings"] == []


@pytest.mark.usefixtures("cuda_device")
def test_padding_to_tiles_is_counted_and_told(tmp_path: Path) -> None:
    report = _on_gpu(tmp_path / "m", "monarch{blocks=4,rank=2}", dtype="float16")
    # The second factor of first: 4 blocks of 32 outputs by 8 inputs, of which 64 are stored.
    stored = 2 * 4 * (16 * 64 + 32 * 64)
    assert stored == _stored(tmp_path / "m", "first")
    assert _sites(report)["first"] == 8 * stored / (256 * 128)
    small = graph(
        "agraph (float[rows, 64] x) => (float[rows, 64] y) { y = MatMul (x, w) }", w=normal(64, 64)
    )
    with device_code_by(_emulated):
        undense.compile(
            small, target="cuda -arch=sm_90", scheme="monarch{blocks=4,rank=2}", dtype="float16",
            output=tmp_path / "small",
        )  # fmt: skip
    (warning,) = inspect(tmp_path / "small")["warnings"]
    assert warning == (
        "w: monarch{blocks=4,rank=2} is stored in 16,384 bytes, padding included, and the dense "
        "weight is of 8,192; keep it dense, or choose another scheme for it"
    )


@pytest.mark.usefixtures("cuda_device")
def test_dense_weights_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    report = _on_gpu(tmp_path / "m", "dense", dtype="float16")
    assert _sites(report) == {"first": 16, "second": 16}
    assert _sites(_on_gpu(tmp_path / "m", "dense")) == {"first": 32, "second": 32}


def test_the_copy_that_cublas_reads_is_counted() -> None:
    """Of what is multiplied by, and not of a table that rows are looked up in."""
    model = graph(
        """g (int64[n] i) => (float[n,96] y) { a = Gather(table, i)  y = MatMul(a, w) }""",
        table=normal(64, 64),
        w=normal(64, 96),
    )
    table, weight = find_sites(model)[0]
    twice = OptionBytes(Target.parse("cuda -arch=sm_90 -libs=cublas"))
    assert (twice.of_dense(table, 1000), twice.of_dense(weight, 1000)) == (1000, 2000)
    assert OptionBytes(Target.parse("cuda -arch=sm_90")).of_dense(weight, 1000) == 1000
