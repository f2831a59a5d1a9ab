"""Whether kernels are made for a GPU now, and whether a library of NVIDIA's has some of them."""

from __future__ import annotations

from tvm.target import Target


def on_gpu() -> bool:
    """Whether `Target.current()` is a GPU, for which `kernels.cuda` has kernels."""
    target = Target.current(allow_none=True)
    return target is not None and target.kind.name == "cuda"


def uses_cublas() -> bool:
    """Whether products of many rows with dense weights are left to cuBLAS."""
    return on_gpu() and "cublas" in (Target.current().attrs.get("libs") or ())
