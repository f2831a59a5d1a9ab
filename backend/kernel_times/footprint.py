"""Whether the weights of a model stay in the caches from one run to the next.

`Footprint` is the bytes of the dense weights that a run reads; None where they are more than the
caches keep, so that weights come from memory whenever they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from ..target import Target
from .layer import Layer
from .machine import cache_bytes
from .models import bytes_of

Footprint = int | None

CACHES = 2
"""Weights of so many times the last cache come from memory: each group of cores has its own."""
_MOST_COPIES = 32
_MOST_BYTES = 512 * 2**20


def footprint_of(layers: Iterable[Layer], cache_bytes: int) -> Footprint:
    """That of a model of these layers, as a power of two: nearly equal models share their times.

    Args:
        layers: one for each weight that a run reads as a whole.
        cache_bytes: of the last cache.
    """
    read = sum(bytes_of(layer.dense) for layer in layers)
    return None if read > CACHES * cache_bytes else 1 << max(read - 1, 0).bit_length()


def copies_of(layer: Layer, cache_bytes: int, footprint: Footprint) -> int:
    """How many copies are as large as the model, or stream past a cache, as far as that is cheap.

    The structured form of a small model is smaller too: it has as many copies as the dense one.
    """
    size = bytes_of(layer)
    if footprint is None:
        wanted = math.ceil(CACHES * cache_bytes / size)
    else:
        wanted = footprint // bytes_of(layer.dense)
    # The call that is subtracted reads another column of x for each copy.
    return max(1, min(wanted, _MOST_COPIES, _MOST_BYTES // size, layer.in_features))


def between(footprint: Footprint, target: Target) -> Callable[[], object]:
    """What drives the weights of a large model out of a CPU's caches between two calls.

    How many of them stay there is else a matter of how many caches the machine has: virtual ones
    tell of one where each core has its own. Those of a GPU are passed by copies alone.
    """
    if footprint is not None or target.device == "cuda":
        return lambda: None
    return reads(CACHES * cache_bytes(target))


def reads(size: int) -> Callable[[], object]:
    """A function that reads so many bytes of its own, behind which all else comes from memory."""
    # Written once: Linux backs what was never written by one page of zeros.
    return np.ones(size // 4, np.float32).max
