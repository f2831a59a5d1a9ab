"""Blocks of 16 outputs side by side: `[rows, n]` <-> `[ceil(rows / 16), n, 16]`.

All weights for TVM are stored so: one load brings the same position of 16 outputs, one for each
lane of a vector, and a whole block is read in order. Missing rows of the last block are zero.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PACKING = 2
"""Version of what kernels expect weights to look like; 2: codes in int32 words of four bytes."""

LANES = 16
"""Outputs of a block: one AVX-512 register of floats, two of AVX2, four of SSE or NEON."""

Scalar = TypeVar("Scalar", bound=np.generic)


def block_count(rows: int) -> int:
    """`ceil(rows / 16)`."""
    return -(-rows // LANES)


SHORT_PANEL = 16384
"""Bytes of what a row reads of a block: the processor fetches ahead what is read in order, but
starts anew with each block, and from memory several short ones side by side take up to twice as
long as one behind the other.
"""


def even_group(blocks: int, most: int, times: int = 1) -> int:
    """How many blocks, up to `most`, a task takes so that two threads are done the soonest.

    Of equal ones three or more, which fill the registers, then that which leaves no narrower task,
    then the widest.

    Args:
        blocks: of a weight.
        most: of a task.
        times: how many such weights there are.
    """

    def order(size: int) -> tuple[int, int, bool, int]:
        rounds = -(-times * -(-blocks // size) // 2)
        return rounds * size, -min(size, 3), blocks % size > 0, -size

    return min(range(min(2, most, blocks), min(most, blocks) + 1), key=order)


def interleave(matrix: NDArray[Scalar]) -> NDArray[Scalar]:
    """`[..., rows, n]` to `[..., ceil(rows / 16), n, 16]`, rows padded with zeros."""
    *lead, rows, length = matrix.shape
    blocks = block_count(rows)
    padded = np.zeros((*lead, blocks * LANES, length), matrix.dtype)
    padded[..., :rows, :] = matrix
    shaped = padded.reshape(*lead, blocks, LANES, length)
    return np.ascontiguousarray(shaped.swapaxes(-1, -2))


def deinterleave(blocks: NDArray[Scalar], rows: int) -> NDArray[Scalar]:
    """The inverse of `interleave` for a matrix of `rows` rows."""
    *lead, count, length, lanes = blocks.shape
    shaped = blocks.swapaxes(-1, -2).reshape(*lead, count * lanes, length)
    return np.ascontiguousarray(shaped[..., :rows, :])
