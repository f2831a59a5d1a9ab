"""What a block may use of a multiprocessor: a kernel that needs more is not launched."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...cuda.nvcc import Resources

REGISTERS = 65536
"""Of a multiprocessor, on every architecture that there are kernels for."""

WARPS = 32
"""Of a block."""

_LEAST_SHARED = 99
_SHARED = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}
"""KiB of shared memory of a block by compute capability; others have the least."""


def shared_limit(architectures: Sequence[str]) -> int:
    """Bytes of shared memory that a block has on all of these."""
    numbers = [int(re.sub(r"\D", "", name)) for name in architectures]
    return 1024 * min(_SHARED.get(number, _LEAST_SHARED) for number in numbers)


def fits(found: Sequence[Resources], threads: int) -> bool:
    """Whether a kernel keeps its values in registers, and a block of it in a multiprocessor."""
    return all(used.spilled_bytes == 0 and used.registers * threads <= REGISTERS for used in found)
