"""Builds libcuda.so.1 and libcudart.so.13 for the host."""

from __future__ import annotations

from pathlib import Path

from cuda_emulation.toolchain import (
    FOLDER,
    built,
    cache_folder,
    cuda_headers,
    fingerprint,
    run_compiler,
)

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")


def driver_library() -> Path:
    """libcuda.so.1: modules, launches, and the threads of a block."""
    sources = [FOLDER / "driver.cpp", FOLDER / "scheduler.cpp"]
    return built(
        _folder() / "libcuda.so.1",
        lambda target: run_compiler(
            [*_FLAGS, f"-I{cuda_headers()}", "-Wl,-soname,libcuda.so.1", *sources, "-o", target]
        ),
    )


def runtime_library() -> Path:
    """libcudart.so.13: memory, streams, events and graphs, on the driver above."""
    driver = driver_library()
    versions = f"-Wl,-soname,libcudart.so.13,--version-script={FOLDER / 'runtime.map'}"
    return built(
        _folder() / "libcudart.so.13",
        lambda target: run_compiler(
            [
                *(*_FLAGS, f"-I{cuda_headers()}", versions),
                *(FOLDER / "runtime.cpp", driver, "-o", target),
            ]
        ),
    )


def _folder() -> Path:
    folder = cache_folder() / f"libraries-{fingerprint()}"
    folder.mkdir(exist_ok=True)
    return folder
