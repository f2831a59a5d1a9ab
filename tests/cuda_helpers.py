"""Shared by the tests of CUDA: orders of threads, architectures, and data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ARCHITECTURES = ("sm_80", "sm_90")
"""That kernels are compiled for where nvcc is."""

ORDERS = ["forward", "backward", "shuffled:1", "shuffled:2"]


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
