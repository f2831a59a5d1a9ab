"""Lets TVM build CUDA modules on machines without a driver: that of the wheel wants one to load.

Without it TVM would put the CUDA source into the artifact, and who runs it would need a compiler.
What stands in has no devices, and nothing but the names that the library is linked with.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import tempfile
from pathlib import Path

from ...passes.errors import MissingDependencyError, TargetError
from ..host_compiler import find_host_compiler

_CREATE = "ffi.Module.create.cuda"
_LIBRARY = "libtvm_runtime_cuda.so"

_DRIVER = """
cuDeviceGetName cuFuncSetAttribute cuGetErrorName cuGetErrorString cuLaunchKernelEx
cuModuleGetFunction cuModuleLoadData cuModuleUnload cuTensorMapEncodeTiled
"""
_RUNTIME = """
cudaDeviceGetAttribute cudaEventCreate cudaEventDestroy cudaEventElapsedTime cudaEventRecord
cudaEventSynchronize cudaFree cudaFreeHost cudaGetDevice cudaGetDeviceCount cudaGetDeviceProperties
cudaGetErrorName cudaGetErrorString cudaGetLastError cudaGraphDestroy cudaGraphExecDestroy
cudaGraphInstantiate cudaGraphLaunch cudaMalloc cudaMallocHost cudaMemGetInfo cudaMemcpyAsync
cudaMemcpyPeerAsync cudaPeekAtLastError cudaSetDevice cudaStreamBeginCapture cudaStreamCreate
cudaStreamCreateWithFlags cudaStreamDestroy cudaStreamEndCapture cudaStreamSynchronize
cudaStreamWaitEvent
"""
_TEXTS = ("cudaGetErrorName", "cudaGetErrorString")
"""They return a text; those of the driver return a status like all others."""

_NO_DEVICE = 100
"""`CUDA_ERROR_NO_DEVICE`, and the runtime's error of that name."""


def load_cuda_modules() -> None:
    """Loads the part of TVM's runtime that CUDA modules are made of, if it is not there.

    Raises:
        MissingDependencyError: this TVM was built without it.
    """
    import tvm_ffi
    from tvm.libinfo import package_lib_paths

    if tvm_ffi.get_global_func(_CREATE, allow_missing=True) is not None:
        return
    paths = [found for p in package_lib_paths() if (found := Path(p) / _LIBRARY).is_file()]
    if not paths:
        raise MissingDependencyError(
            f"target cuda needs a TVM with {_LIBRARY}: pip install 'undense[cuda]'"
        )
    from ...runtime.cuda_runtime import load_cuda_libraries

    with contextlib.suppress(MissingDependencyError, TargetError):
        load_cuda_libraries()  # those of packages too: a stand-in would hide the GPU from `load`
    with tempfile.TemporaryDirectory(prefix="undense-driver-") as folder:
        # What is loaded stays when its file is gone.
        for soname, names in (("libcuda.so.1", _DRIVER), ("libcudart.so.13", _RUNTIME)):
            try:
                ctypes.CDLL(soname)
            except OSError:
                ctypes.CDLL(str(_stand_in(Path(folder), soname, names.split())))
        ctypes.CDLL(str(paths[0]))


def _stand_in(folder: Path, soname: str, names: list[str]) -> Path:
    """A library of that name whose functions all say that there is no device."""
    source, script = folder / "functions.c", folder / "versions"
    source.write_text("\n".join(map(_function, names)), encoding="utf-8")
    version = f"{soname} " if soname.startswith("libcudart") else ""
    script.write_text(f"{version}{{ global: *; }};\n", encoding="utf-8")
    made = folder / soname
    flags = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}"]
    compiler = find_host_compiler() or "cc"
    command = [compiler, "-shared", "-fPIC", *flags, "-o", str(made), "-x", "c", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MissingDependencyError(f"{compiler} does not link a library: {done.stderr.strip()}")
    return made


def _function(name: str) -> str:
    if name in _TEXTS:
        return f'const char* {name}(int status) {{ return "no CUDA device"; }}'
    return f"int {name}(void) {{ return {_NO_DEVICE}; }}"
