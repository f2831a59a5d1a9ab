"""Builds the emulated CUDA driver and runtime, and TVM's CUDA runtime that uses them.

They do not bear the names of the real ones: PyTorch's CUDA build brings a real libcudart.so.13 into
the process, and looks for a real libcuda.so.1.
"""

from __future__ import annotations

from pathlib import Path

from cuda_emulation.elf import rename_needed
from cuda_emulation.toolchain import (
    FOLDER,
    EmulationUnavailable,
    built,
    cache_folder,
    content_hash,
    fingerprint,
    include_flags,
    run_compiler,
)

# As long as the names they replace.
_DRIVER = "emucuda.so.1"
_RUNTIME = "emucudart.so.13"
_CUBLAS = "emucublas.so.13"
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")
_TVM_RUNTIME = "libtvm_runtime_cuda.so"


def driver_library() -> Path:
    """For libcuda.so.1: modules, launches, and the threads of a block."""
    names = ("driver.cpp", "scheduler.cpp", "warpgroup.cpp", "faults.cpp")
    sources = [FOLDER / name for name in names]
    flags = [*_FLAGS, *include_flags(), f"-Wl,-soname,{_DRIVER}"]
    return built(_folder() / _DRIVER, lambda target: run_compiler([*flags, *sources, "-o", target]))


def runtime_library() -> Path:
    """For libcudart.so.13: memory, streams, events and graphs, on the driver above."""
    driver = driver_library()

    def build(target: Path) -> None:
        versions = target.with_suffix(".map")
        versions.write_text(f"{_RUNTIME} {{ global: *; }};\n", encoding="utf-8")
        linking = f"-Wl,-soname,{_RUNTIME},--version-script={versions}"
        source = FOLDER / "runtime.cpp"
        run_compiler([*_FLAGS, *include_flags(), linking, source, driver, "-o", target])

    return built(_folder() / _RUNTIME, build)


def cublas_library() -> Path:
    """For libcublas.so.13: products, on the driver above."""
    driver = driver_library()

    def build(target: Path) -> None:
        linking = f"-Wl,-soname,{_CUBLAS}"
        source = FOLDER / "cublas.cpp"
        run_compiler([*_FLAGS, *include_flags(), linking, source, driver, "-o", target])

    return built(_folder() / _CUBLAS, build)


def tvm_runtime_library() -> Path:
    """A copy of TVM's runtime for CUDA that needs the two above for the real ones."""
    from tvm.libinfo import package_lib_paths

    files = [folder / _TVM_RUNTIME for folder in package_lib_paths()]
    original = next((file for file in files if file.is_file()), None)
    if original is None:
        raise EmulationUnavailable(
            f"this TVM comes without {_TVM_RUNTIME}; install apache-tvm from PyPI"
        )
    image = original.read_bytes()

    def build(target: Path) -> None:
        renamed = rename_needed(image, "libcuda.so.1", _DRIVER)
        target.write_bytes(rename_needed(renamed, "libcudart.so.13", _RUNTIME))

    return built(_folder() / f"tvm_runtime_cuda-{content_hash(image)}.so", build)


def _folder() -> Path:
    folder = cache_folder() / f"libraries-{fingerprint()}"
    folder.mkdir(exist_ok=True)
    return folder
