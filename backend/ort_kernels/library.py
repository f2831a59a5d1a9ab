"""Builds `kernels.so`: generated code, its table, the packed weights and the C++ around them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import onnx_ir as ir

from ...passes.errors import LoweringError, MissingDependencyError
from ..host_compiler import find_cpp_compiler
from ..target import Target
from .functions import Functions
from .products import ALIGNMENT, collect
from .table import table_source

HERE = Path(__file__).parent
HOST = Target("tvm")
"""Kernels are compiled for the CPU of this machine, as target `llvm` is."""

# In a section of its own behind all others: code stays within reach of its data, however many
# weights there are. They are mapped with the library, read when a kernel wants them, and shared by
# all processes.
_WEIGHTS = f"""
    .section .lrodata.undense,"al",@progbits
    .balign {ALIGNMENT}
    .globl undense_weights
undense_weights:
    .incbin "weights.bin"
    .section .note.GNU-stack,"",@progbits
"""

# Nothing but the entry point is visible, so that no other library in the process takes the place
# of a hook, or gets one of ours in its place.
_EXPORTS = "{ global: RegisterCustomOps; local: *; };\n"

_OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden")
_COMMON = ("operators.cc", "tvm_backend.cc")
"""Sources that no model changes."""


def check_toolchain() -> None:
    """Refuses to start long work that would end without TVM or a C++ compiler.

    Raises:
        MissingDependencyError: one of them is missing; says what to install.
    """
    try:
        HOST.tvm()
    except MissingDependencyError as error:
        raise MissingDependencyError(
            "kernels tvm need Apache TVM: pip install 'undense[cpu]'"
        ) from error
    _compiler()


def build(model: ir.Model, path: Path) -> int:
    """Writes the kernels of all structured nodes of `model` to the library `path`.

    It depends on no TVM and on no file but itself.

    Returns:
        Bytes of the weights in it; 0 without a structured node, where nothing is written.

    Raises:
        LoweringError: a structure without kernel, or the compiler failed; has its message.
        MissingDependencyError: TVM or a C++ compiler is missing.
    """
    machine, functions = HOST.tvm(), Functions()
    with tempfile.TemporaryDirectory(prefix="undense-kernels-") as name:
        folder = Path(name)
        with machine, (folder / "weights.bin").open("wb") as weights:
            sites = collect(model, functions, weights)
            packed = weights.tell()
        if not sites:
            return 0
        functions.write(folder / "functions.o", machine)
        (folder / "table.cc").write_text(table_source(sites, functions.names), encoding="ascii")
        (folder / "weights.s").write_text(_WEIGHTS, encoding="ascii")
        (folder / "exports.map").write_text(_EXPORTS, encoding="ascii")
        shutil.copyfile(HERE / "native" / "kernels.h", folder / "kernels.h")
        for name, code in _objects(_compiler()).items():
            (folder / name).write_bytes(code)
        _link(folder, path.name)
        shutil.copyfile(folder / path.name, path)
    return packed


@cache
def _objects(compiler: str) -> dict[str, bytes]:
    """The code that all libraries have in common, compiled once in a process."""
    with tempfile.TemporaryDirectory(prefix="undense-kernels-") as name:
        folder = Path(name)
        for source in (HERE / "native").iterdir():
            shutil.copyfile(source, folder / source.name)
        _run(folder, [compiler, *_OPTIONS, *_includes(), "-c", *_COMMON])
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.o"))}


def _link(folder: Path, library: str) -> None:
    # By names within the folder, so that the same model gives the same bytes.
    command = [
        *(_compiler(), *_OPTIONS, "-shared", *_includes()),
        *(Path(source).with_suffix(".o").name for source in _COMMON),
        *("table.cc", "weights.s", "functions.o"),
        *("-static-libstdc++", "-static-libgcc", "-s", "-Wl,--version-script=exports.map"),
        *("-Wl,-z,defs", "-Wl,--gc-sections", "-Wl,--build-id=none", "-lm", "-lpthread"),
        *("-o", library),
    ]
    _run(folder, command)


def _includes() -> list[str]:
    import tvm.libinfo
    import tvm_ffi.libinfo

    paths = [
        HERE / "include",
        tvm_ffi.libinfo.find_include_path(),
        tvm_ffi.libinfo.find_dlpack_include_path(),
        tvm.libinfo.find_include_path(),
    ]
    return [f"-I{path}" for path in dict.fromkeys(map(str, paths))]


def _run(folder: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise LoweringError(
            f"kernels tvm: {command[0]} cannot build kernels.so ({reason.strip()}); "
            "compile without kernels, or with another compiler"
        )


def _compiler() -> str:
    found = find_cpp_compiler()
    if found is None:
        raise MissingDependencyError(
            "kernels tvm need a C++ compiler and none is on the path; install g++ or clang, "
            "or compile without kernels"
        )
    return found
