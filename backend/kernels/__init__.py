"""The registry: structures to their TVM kernels. A new structure costs one line here."""

from __future__ import annotations

from functools import cache
from typing import Any

from ...passes.errors import LoweringError
from ...passes.structures.base import Structure
from .base import Kernel, Packed

__all__ = ["Kernel", "Packed", "kernel_for", "kernels"]


@cache
def kernels() -> dict[str, Kernel[Any]]:
    """Every registered kernel by the scheme name of its structure."""
    from .int_codes import IntCodesKernel
    from .low_rank import LowRankKernel
    from .monarch import MonarchKernel
    from .residual import ResidualKernel
    from .trit_planes import TritPlanesKernel

    codes = IntCodesKernel()
    parts: dict[str, Kernel[Any]] = {
        "int_codes": codes,
        "low_rank": LowRankKernel(codes),
        "monarch": MonarchKernel(),
        "trit_planes": TritPlanesKernel(),
    }
    return {**parts, "residual": ResidualKernel(parts)}


def kernel_for(structure: Structure, dtype: str = "float32") -> Kernel[Any]:
    """The kernel of a structure's kind for `Target.current()`.

    Args:
        structure: what is to be computed.
        dtype: of the activations; those of CPUs are float32 always.

    Raises:
        LoweringError: the structure has no TVM kernel.
    """
    from .cuda.structures import cuda_kernels
    from .gpu import on_gpu

    try:
        return (cuda_kernels(dtype) if on_gpu() else kernels())[structure.kind]
    except KeyError:
        raise LoweringError(
            f"{structure.kind} has no TVM kernel; compile for target "
            f"{'ort-cuda' if on_gpu() else 'ort-cpu'}, which runs the structure's ONNX function"
        ) from None
