"""The order of weights in device memory: what a lane of a warp needs lies side by side.

A tile is 16 outputs by 16 inputs; four of them make a chunk of 64 inputs. Lane `4 g + t` holds of
tile j the inputs `16 t + 4 j … + 3` of the chunk, first of the output g, then of output g + 8. So
the values of x that a lane multiplies with are 16 neighbours, which it loads 16 bytes at a time,
and no weight is moved between lanes: the layout of Marlin (arXiv 2408.11743) with its inputs in
another order, which a sum does not notice.

Outputs are permuted within 32: those that a lane computes are then 8 neighbours too.
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

PAIRED = 32
"""Outputs of two tiles, which are permuted together."""


def output_of(position: int) -> int:
    """The output, of 32, that stands at a position in a pair of tiles."""
    eight, row = divmod(position, 8)
    return 8 * (row // 2) + 2 * eight + row % 2


def padded(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """`[..., m, n]` with zeros up to whole pairs of tiles and whole chunks."""
    *lead, outputs, inputs = weight.shape
    missing = [(0, 0)] * len(lead) + [(0, -outputs % PAIRED), (0, -inputs % CHUNK)]
    return np.pad(weight, missing)


def in_tiles(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """`[..., m, n]`, m a multiple of 32, with each row where its output stands."""
    *lead, outputs, inputs = rows.shape
    pairs = rows.reshape(*lead, outputs // PAIRED, PAIRED, inputs)
    return pairs[..., [output_of(p) for p in range(PAIRED)], :].reshape(rows.shape)


def fragments(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """`[..., m, n]` -> `[..., m / 16, n / 64, 4 tiles, 32 lanes, 8]`, filled with zeros."""
    filled = padded(weight)
    *lead, outputs, inputs = filled.shape
    # rows: tile, half, g; inputs: chunk, t, tile of the chunk, value
    split = in_tiles(filled).reshape(*lead, outputs // TILE, 2, 8, inputs // CHUNK, 4, TILES, 4)
    n = len(lead)
    order = [*range(n), n, n + 3, n + 5, n + 2, n + 4, n + 1, n + 6]
    moved = np.ascontiguousarray(split.transpose(order))
    return moved.reshape(*lead, outputs // TILE, inputs // CHUNK, TILES, 32, 8)


def row_tiles(outputs: int) -> int:
    """Tiles of that many outputs, an even number."""
    return -(-outputs // PAIRED) * (PAIRED // TILE)


def chunks(inputs: int) -> int:
    """Chunks of that many inputs."""
    return -(-inputs // CHUNK)
