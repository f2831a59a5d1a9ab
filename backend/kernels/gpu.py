"""Whether kernels are made for a GPU now."""

from __future__ import annotations

from tvm.target import Target


def on_gpu() -> bool:
    """Whether `Target.current()` is a GPU, for which `kernels.cuda` has kernels."""
    target = Target.current(allow_none=True)
    return target is not None and target.kind.name == "cuda"
