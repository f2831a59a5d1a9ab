"""What a block may have of a multiprocessor: a kernel that needs more is not launched."""

from __future__ import annotations

import re
from collections.abc import Sequence

WARPS = 32
"""Of a block."""

LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a block has on every architecture that there are kernels for."""

_SHARED = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}
"""The same in KiB by compute capability; others have the least."""


def shared_limit(architectures: Sequence[str]) -> int:
    """Bytes of shared memory that a block has on all of these."""
    numbers = [int(re.sub(r"\D", "", name)) for name in architectures]
    known = [1024 * _SHARED[number] if number in _SHARED else LEAST_SHARED for number in numbers]
    return min(known, default=LEAST_SHARED)
