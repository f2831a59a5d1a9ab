"""Whether kernels are made for a GPU now, for which, and whether NVIDIA's library has some."""

from __future__ import annotations

from tvm.target import Target


def on_gpu() -> bool:
    """Whether `Target.current()` is a GPU, for which `kernels.cuda` has kernels."""
    target = Target.current(allow_none=True)
    return target is not None and target.kind.name == "cuda"


def has_warpgroups() -> bool:
    """Whether kernels are for Hopper's very chips, whose tensor cores take a warpgroup at a time.

    They are where `sm_90a` is the only architecture: code for several has one set of kernels.
    """
    return on_gpu() and Target.current().attrs["arch"] == "sm_90a"


def uses_cublas() -> bool:
    """Whether products of many rows with dense weights are left to cuBLAS."""
    return on_gpu() and "cublas" in (Target.current().attrs.get("libs") or ())
