"""Whether ONNX Runtime can run on a GPU here, and why not: asked to, it would run on the CPU.

That a missing library is named was tried with onnxruntime-gpu 1.31.1; nothing was run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from typing import Any

import numpy as np

from ..passes.errors import MissingDependencyError, TargetError, UndenseError, cause_of

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

_DRIVER = "libcuda.so.1"
_FAILED = "Failed to load "
"""How ONNX Runtime starts a line on a library that is not there."""


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
    missing = _preload(onnxruntime)
    try:
        # Never load the provider's library by hand: it ends the process before ONNX Runtime is up.
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # its exceptions share no base but Exception
        return TargetError(f"{NAME} cannot be used ({_cause(missing, error)}")
    return None


def _preload(onnxruntime: Any) -> str | None:
    """Loads NVIDIA's libraries from their packages; what ONNX Runtime prints of the first gap."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    lines = printed.getvalue().splitlines()
    return next((line.removeprefix(_FAILED) for line in lines if line.startswith(_FAILED)), None)


def _cause(missing: str | None, error: Exception) -> str:
    """The cause and, behind a bracket, the remedy."""
    if missing is not None:
        return f"{missing}): pip install 'onnxruntime-gpu[cuda,cudnn]'"
    try:
        driver, count = ctypes.CDLL(_DRIVER), ctypes.c_int(0)
    except OSError as absent:
        return f"{absent}): install NVIDIA's driver"
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return (
            "NVIDIA's driver finds no GPU): make one visible, by CUDA_VISIBLE_DEVICES or the "
            "options of the container"
        )
    return f"{cause_of(error)}): mend that"
