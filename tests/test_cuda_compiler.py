"""nvcc as a part of compiling: what it puts into `module.so`, and one that will not do."""

from __future__ import annotations

import struct
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
from cuda_helpers import ARCHITECTURES
from onnx import save
from relax_models import parse
from undense.backend.cuda import nvcc
from undense.backend.cuda.module import check_device_compiler, device_code_by
from undense.cli import main
from undense.passes.errors import MissingDependencyError, TargetError

needs_nvcc = pytest.mark.usefixtures("cuda_compiler")
LINEAR = (
    "g (float16[n, 64] x) => (float16[n, 2] y) <float16[64, 2] w = {"
    + ", ".join(["1"] * 128)
    + "}> { y = MatMul(x, w) }"
)


_BUILD = """
import sys
import tvm
from undense.backend.relax_build import build
from undense.backend.target import Target
from undense.frontend.load import load
module = build(load(sys.argv[1]), Target.parse("cuda -arch=sm_80,sm_90"))
module.export(sys.argv[2])
print("devices", int(tvm.cuda(0).exist))
"""


@pytest.fixture(scope="module")
def library(cuda_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """`module.so` for both architectures, and what the process that built it said."""
    folder = tmp_path_factory.mktemp("module")
    save(parse(LINEAR), folder / "linear.onnx")
    command = [sys.executable, "-c", _BUILD, str(folder / "linear.onnx"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (folder / "module.so").read_bytes(), done.stdout


def device_images(data: bytes) -> list[tuple[str, int]]:
    """Kind and architecture of each image in the fat binaries of a file.

    A fat binary is a header of `magic, version, header size, size`, then images: each a header
    with its kind first, its own size after 4 bytes, that of what follows after 8, and the
    architecture after 28.
    """
    found = []
    start = data.find(struct.pack("<IH", 0xBA55ED50, 1))
    while start >= 0:
        header, size = struct.unpack_from("<HQ", data, start + 6)
        at, end = start + header, start + header + size
        while at < end:
            kind, image_header, length = struct.unpack_from("<HxxIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            found.append(({1: "ptx", 2: "machine code"}[kind], architecture))
            at += image_header + length
        start = data.find(struct.pack("<IH", 0xBA55ED50, 1), end)
    return found


@needs_nvcc
def test_module_holds_code_of_each_architecture_and_ptx_for_later_ones(
    library: tuple[bytes, str],
) -> None:
    data, _ = library
    assert sorted(device_images(data)) == [("machine code", 80), ("machine code", 90), ("ptx", 90)]


@needs_nvcc
def test_module_holds_no_source(library: tuple[bytes, str]) -> None:
    data, _ = library
    for text in (b"__global__", b"__launch_bounds__", b"undense_mma_f16("):
        assert text not in data


@needs_nvcc
def test_building_needs_no_gpu_and_no_driver(library: tuple[bytes, str]) -> None:
    if find_library("cuda") is not None:
        pytest.skip("this machine has NVIDIA's driver")
    _, said = library
    assert "devices 0" in said


@pytest.mark.parametrize("target", ["cuda", "cuda -arch=sm_90"])
def test_no_compiler_is_one_sentence_before_long_work(
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def find() -> Path:
        raise MissingDependencyError("target cuda needs nvcc, and there is none")

    def load(*given: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded before nvcc was asked for")

    monkeypatch.setattr(nvcc, "find_nvcc", find)
    monkeypatch.setattr("undense.frontend.load.load", load)
    save(parse(LINEAR), tmp_path / "linear.onnx")
    arguments = ["compile", str(tmp_path / "linear.onnx"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--target", target]) == 2
    assert capsys.readouterr().err.strip() == "undense: target cuda needs nvcc, and there is none"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'Cuda compilation tools, release 11.8, V11.8.89'",
            r"is of CUDA 11\.8 .* needs 12\.4",
        ),
        ("echo nothing known", r"is of CUDA 0\.0 and target cuda needs 12\.4"),
        ("exit 3", "does not run"),
    ],
)
def test_a_compiler_that_will_not_do_is_named(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "nvcc"
    made.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    made.chmod(0o755)
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: made)
    nvcc.nvcc_version.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=message):
            nvcc.check_nvcc(ARCHITECTURES)
    finally:
        nvcc.nvcc_version.cache_clear()


def test_who_brings_device_code_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Path:
        raise MissingDependencyError("no nvcc")

    monkeypatch.setattr(nvcc, "find_nvcc", find)
    with device_code_by(lambda source, architectures: b""):
        check_device_compiler(ARCHITECTURES)
    with pytest.raises(MissingDependencyError, match="no nvcc"):
        check_device_compiler(ARCHITECTURES)


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_is_refused() -> None:
    nvcc.check_nvcc(["sm_90a"])
    with pytest.raises(TargetError, match=r"knows no sm_999: it knows .*sm_90"):
        nvcc.check_nvcc(["sm_90", "sm_999"])
