"""Whether ONNX Runtime can run on a GPU here, and why not: asked to, it would run on the CPU.

That a missing library is named was tried with onnxruntime-gpu 1.31.1; nothing was run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from pathlib import Path

from ..passes.errors import MissingDependencyError, TargetError, UndenseError

NAME = "CUDAExecutionProvider"

WITH_OPTIONS = (
    NAME,
    {
        "device_id": "0",
        # TF32 would round float32 to 10 bits; the tolerances of artifacts are those of float32.
        "use_tf32": "0",
        # The default tries every algorithm of a convolution again for each new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
    },
)
"""As `InferenceSession` takes it."""

_PACKAGES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_LIBRARIES = {
    "libonnxruntime_providers_shared.so": ctypes.RTLD_GLOBAL,
    "libonnxruntime_providers_cuda.so": ctypes.RTLD_LOCAL,
}
"""With the modes in which ONNX Runtime loads them: the second needs symbols of the first."""

_DRIVER = "libcuda.so.1"


def obstacle() -> UndenseError | None:
    """What keeps ONNX Runtime from running on a GPU here, with the remedy; None if nothing does."""
    try:
        import onnxruntime
    except ImportError as error:
        return MissingDependencyError(
            f"onnxruntime cannot be imported ({error}): pip install 'undense[cuda]'"
        )
    if NAME not in onnxruntime.get_available_providers():
        return MissingDependencyError(
            f"onnxruntime {onnxruntime.__version__} comes without {NAME}: uninstall onnxruntime "
            "and pip install 'undense[cuda]'"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing, as is said below
        onnxruntime.preload_dlls()
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name, mode in _LIBRARIES.items():
            ctypes.CDLL(str(folder / name), mode)
    except OSError as error:
        return TargetError(f"{NAME} cannot be loaded ({error}): {_remedy(str(error))}")
    return _no_device()


def _remedy(missing: str) -> str:
    return "install NVIDIA's driver" if _DRIVER in missing else _PACKAGES


def _no_device() -> UndenseError | None:
    """What NVIDIA's driver, which the provider has loaded by now, says of the devices."""
    driver, count = ctypes.CDLL(_DRIVER), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return TargetError(
            "NVIDIA's driver finds no GPU: make one visible (CUDA_VISIBLE_DEVICES, or the options "
            "of the container)"
        )
    return None
