"""A libcublas for the emulated device, and what it was asked for."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

from cuda_emulation.libraries import cublas_library

_MOST = 1000


class _Product(ctypes.Structure):
    _fields_ = (
        ("stream", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("rows", "outputs", "inputs", "type")),
    )


@dataclass(frozen=True)
class Product:
    """One product: its stream, its lengths, and the number of its type."""

    stream: int
    rows: int
    outputs: int
    inputs: int
    type: int


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(cublas_library()))


def taken() -> list[Product]:
    """The products since the last time."""
    found = (_Product * _MOST)()
    count = _library().cublasEmulationTake(found, _MOST)
    return [
        Product(item.stream or 0, item.rows, item.outputs, item.inputs, item.type)
        for item in found[:count]
    ]


def handles() -> int:
    """How many handles this process has made."""
    count: int = _library().cublasEmulationHandles()
    return count


def fail(status: int) -> None:
    """The next product fails with this status."""
    _library().cublasEmulationFail(status)
