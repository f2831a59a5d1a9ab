"""What a kernel may use of a multiprocessor's registers, as ptxas tells it."""

from __future__ import annotations

from collections.abc import Sequence

from ...cuda.nvcc import Resources

REGISTERS = 65536
"""Of a multiprocessor, on every architecture that there are kernels for."""


def fits(found: Sequence[Resources], threads: int) -> bool:
    """Whether a kernel keeps its values in registers, and a block of it in a multiprocessor."""
    return all(used.spilled_bytes == 0 and used.registers * threads <= REGISTERS for used in found)
