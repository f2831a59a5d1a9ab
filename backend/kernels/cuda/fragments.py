"""The order of weights in device memory: what a lane of a warp needs lies side by side.

A tile is 16 outputs by 16 inputs; four of them make a chunk of 64 inputs. Lane `4 g + t` holds of
tile j the inputs `i, i + 1` of output g, then of output g + 8, and `i + 2, i + 3` of both, with
`i = 16 t + 4 j` in the chunk: the first operand of an instruction in four registers. So the values
of x that a lane multiplies with are 16 neighbours, which it loads 16 bytes at a time, and no
weight is moved between lanes or registers: the layout of Marlin (arXiv 2408.11743) with its inputs
in another order, which a sum does not notice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 64
"""Inputs of a chunk."""

TILE = 16
"""Outputs of a tile."""

TILES = 4
"""Of a chunk."""

EIGHT = 8
"""Rows of x of one instruction."""

SUMS = 4
"""That a lane has of one instruction."""


def padded(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """`[..., m, n]` with zeros up to whole tiles and whole chunks."""
    *lead, outputs, inputs = weight.shape
    missing = [(0, 0)] * len(lead) + [(0, -outputs % TILE), (0, -inputs % CHUNK)]
    return np.pad(weight, missing)


def fragments(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """`[..., m, n]` -> `[..., m / 16, n / 64, 4 tiles, 32 lanes, 8]`, filled with zeros."""
    filled = padded(weight)
    *lead, outputs, inputs = filled.shape
    # outputs: tile, side, g; inputs: chunk, t, tile of the chunk, pair, value
    split = filled.reshape(*lead, outputs // TILE, 2, 8, inputs // CHUNK, 4, TILES, 2, 2)
    n = len(lead)
    tile, side, g, chunk, t, small, pair, value = range(n, n + 8)
    order = [*range(n), tile, chunk, small, g, t, pair, side, value]
    moved = np.ascontiguousarray(split.transpose(order))
    return moved.reshape(*lead, outputs // TILE, inputs // CHUNK, TILES, 32, 8)


def row_tiles(outputs: int) -> int:
    """Tiles of that many outputs."""
    return -(-outputs // TILE)


def chunks(inputs: int) -> int:
    """Chunks of that many inputs."""
    return -(-inputs // CHUNK)
