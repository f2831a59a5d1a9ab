"""What the machine is, and what it does at most."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .random_data import DTYPES
from .timing import Clock

_COPIED_BYTES = 2 * 2**30
_SQUARE = 8192
_REPEATS = 20


@dataclass(frozen=True)
class Peaks:
    """What floors are counted with.

    Attributes:
        copy_bandwidth: bytes a second, read and written ones both counted.
        rates: operations a second of the largest square product of torch, by dtype.
        cache_bytes: of the last cache.
    """

    copy_bandwidth: float
    rates: Mapping[str, float]
    cache_bytes: int

    def rate(self, dtype: str) -> float:
        """Of products of a type."""
        return self.rates[dtype]


def measured_peaks() -> Peaks:
    """In some seconds."""
    rates = {name: _rate(DTYPES[name]) for name in ("float16", "bfloat16")}
    properties = torch.cuda.get_device_properties(0)
    return Peaks(_copy_bandwidth(), rates, int(properties.L2_cache_size))


def described(peaks: Peaks) -> dict[str, Any]:
    """The machine, its software and its peaks, for the results."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **asdict(peaks),
    }


def _copy_bandwidth() -> float:
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _median(lambda: target.copy_(source))


def _rate(dtype: torch.dtype) -> float:
    first, second = (torch.randn((_SQUARE, _SQUARE), device="cuda").to(dtype) for _ in range(2))
    return float(2 * _SQUARE**3 / _median(lambda: first @ second))


def _median(call: Callable[[], object]) -> float:
    clock = Clock()
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    return statistics.median(clock.seconds(call) for _ in range(_REPEATS))
