"""Builds `cublas.so`, by which `module.so` calls cuBLAS: C++ on the FFI of TVM."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ...passes.errors import LoweringError, MissingDependencyError
from ...runtime.artifact import CUBLAS
from ..host_compiler import find_cpp_compiler

_SOURCE = Path(__file__).parent / "native" / "cublas.cc"


# Nothing but its two functions is visible, so that no other library in the process takes the place
# of one of its own.
_EXPORTS = "{ global: __tvm_ffi_*; local: *; };\n"


def cpp_compiler() -> str:
    """The one that builds `cublas.so`.

    Raises:
        MissingDependencyError: no C++ compiler.
    """
    found = find_cpp_compiler()
    if found is None:
        raise MissingDependencyError(
            "-libs=cublas needs a C++ compiler and none is on the path; install g++ or clang, or "
            "leave the option out"
        )
    return found


@cache
def cublas_library() -> bytes:
    """The library, which needs the FFI of TVM and opens cuBLAS when it is told to.

    Equal compilers give equal bytes.

    Raises:
        LoweringError: the compiler failed; has its message.
        MissingDependencyError: no C++ compiler.
    """
    import tvm_ffi.libinfo

    ffi = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    includes = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    with tempfile.TemporaryDirectory(prefix="undense-cublas-") as name:
        folder = Path(name)
        shutil.copyfile(_SOURCE, folder / _SOURCE.name)
        (folder / "exports.map").write_text(_EXPORTS, encoding="ascii")
        command = [
            cpp_compiler(),
            *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
            *(f"-I{include}" for include in includes),
            *(_SOURCE.name, f"-L{ffi.parent}", f"-l:{ffi.name}", "-ldl"),
            *("-static-libstdc++", "-static-libgcc", "-s"),
            *("-Wl,-z,defs", "-Wl,--version-script=exports.map", "-Wl,--build-id=none"),
            *("-o", CUBLAS),
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise LoweringError(
                f"-libs=cublas: {command[0]} cannot build {CUBLAS} "
                f"({(reason or done.stderr).strip()}); leave the option out, or compile with "
                "another compiler"
            )
        return (folder / CUBLAS).read_bytes()
