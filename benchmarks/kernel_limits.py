"""The least time that a machine allows a layer: its weights are read, its operations are done."""

from __future__ import annotations

from dataclasses import dataclass

from .kernel_layer import Layer
from .peak import Peak


@dataclass(frozen=True)
class Limit:
    """What binds a layer.

    Attributes:
        name: `reads from L2`, `reads from L3`, `reads from memory`, `float32 arithmetic` or
            `int8 arithmetic`.
        milliseconds: that it takes at least.
    """

    name: str
    milliseconds: float


def bytes_moved(layer: Layer, rows: int) -> int:
    """Stored weights, x and y, each once."""
    return layer.stored_bytes + 4 * rows * (layer.in_features + layer.out_features)


def limit(layer: Layer, rows: int, peak: Peak, *, cached: bool) -> Limit:
    """The longer of reading everything once and of all operations.

    Args:
        layer: whose weights lie in the fastest level that holds them.
        rows: of x.
        peak: of the number of threads.
        cached: False if the weights were made to come from memory.
    """
    level = peak.level(layer.stored_bytes) if cached else "memory"
    read = bytes_moved(layer, rows) / peak.read_gb_per_s[level]
    limits = [Limit(f"reads from {level}", 1e-6 * read)]
    rate = peak.operations(layer.arithmetic)
    if rate is not None:
        operations = 2 * layer.macs * rows / rate
        limits.append(Limit(f"{layer.arithmetic} arithmetic", 1e-6 * operations))
    return max(limits, key=lambda one: one.milliseconds)
