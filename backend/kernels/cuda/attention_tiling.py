"""How attention is divided among blocks and warps, for few rows and for many.

A row is a query of one of the heads that share a head of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..attention import Attention
from .dtypes import Activation
from .fragments import EIGHT, SUMS, TILE
from .words import UNIT

GREATEST = 256
"""Size of a head: the results of larger ones do not fit into registers."""

FEW = 64
"""Rows up to which keys are split over blocks: more rows fill the processor by themselves."""

BLOCKS = 384
"""Blocks that splits may add up to: about three for each of a large GPU's 108 or 132 processors."""

ALONE = 512
"""Keys up to which one block takes them all: adding up splits takes longer than so few keys."""

SHARE = 128
"""Keys that a split has at least; a multiple of them."""


@dataclass(frozen=True)
class AttentionTiling:
    """How the work of a block is divided.

    Attributes:
        warps: of a block.
        keys: that a warp multiplies at once, a multiple of 16.
        stages: tiles of that many keys, or of their values, in shared memory.
        tiles: of 16 rows of a warp.
        keep_queries: in registers; else they are read for every tile of keys.
        share_keys: the warps of a block have the same rows, and take turns with the keys, each
            with stages of its own; else each has rows of its own and all have the same keys.
    """

    warps: int
    keys: int
    stages: int
    tiles: int = 1
    keep_queries: bool = True
    share_keys: bool = False

    @property
    def rows(self) -> int:
        """Of a block."""
        return TILE * self.tiles * (1 if self.share_keys else self.warps)

    @property
    def eights(self) -> int:
        """Of keys of a tile."""
        return self.keys // EIGHT


class SharedRows:
    """Where rows lie in shared memory, in words: queries, then a ring of keys and values.

    A unit more in each row makes its length an odd number of units, so that eight rows begin in
    eight different banks of four.
    """

    def __init__(self, tiling: AttentionTiling, spec: Attention, activation: Activation) -> None:
        self.key = spec.size * activation.bytes // 4 + UNIT
        self.value = spec.value_size * activation.bytes // 4 + UNIT
        # Results leave by the place of the queries, where warps have rows of their own.
        self.query = self.key if tiling.share_keys else max(self.key, self.value)
        self.slot = tiling.keys * max(self.key, self.value)
        self.ring = tiling.rows * self.query
        """Where the first ring begins."""
        rings = tiling.stages * self.slot * (tiling.warps if tiling.share_keys else 1)
        self.words = self.ring + rings
        self.part = spec.value_size + UNIT
        """Of float32: what was added up for a row, its maximum and its total, in whole units."""
        if tiling.share_keys:
            self.words = max(self.words, tiling.warps * TILE * self.part)


def few_rows(spec: Attention, activation: Activation) -> AttentionTiling:
    """For up to `FEW` rows: keys go through many rings, as each is read once."""
    row = max(spec.size, spec.value_size) * activation.bytes
    warps, stages = (4, 3) if row <= 448 else (4, 2) if row <= 512 else (2, 2)
    tiling = AttentionTiling(warps=warps, keys=TILE, stages=stages, share_keys=True)
    return _fitted(tiling, spec, activation, (32, TILE) if row <= 128 else (TILE,))


def many_rows(spec: Attention, activation: Activation) -> AttentionTiling:
    """For more rows: two tiles of a warp read each tile of keys once, where sums leave room."""
    size = max(spec.size, spec.value_size)
    if activation.bytes == 2 and size <= 128:
        tiling = AttentionTiling(warps=4, keys=TILE, stages=2, tiles=2)
        # A mask is read for all keys of a tile at once, into registers.
        keys = (64, 48, 32) if spec.mask is None else (32,)
        return _fitted(tiling, spec, activation, keys)
    tiling = AttentionTiling(warps=4, keys=TILE, stages=2)
    return _fitted(tiling, spec, activation, (TILE,) if size * activation.bytes > 512 else (32,))


_ROOM = 176
"""Values of a lane that leave enough of 255 registers for everything else."""

_OF_MASK, _OF_FLOATS, _OF_KEPT = 16, 32, 16
"""Registers that the places of a mask take, float32 values in two parts, and queries at hand."""


def _fitted(
    tiling: AttentionTiling, spec: Attention, activation: Activation, keys: tuple[int, ...]
) -> AttentionTiling:
    """The first of these numbers of keys for which registers suffice, else the last one."""
    sums = spec.value_size // EIGHT * SUMS
    room = _ROOM - (_OF_MASK if spec.mask is not None else 0)
    room -= _OF_FLOATS if activation.bytes == 4 else 0
    for count in keys:
        values = tiling.tiles * (sums + count // EIGHT * SUMS)
        queries = tiling.tiles * spec.size // TILE * activation.words + _OF_KEPT
        if values + queries <= room:
            return replace(tiling, keys=count)
        if values <= room:
            return replace(tiling, keys=count, keep_queries=False)
    return replace(tiling, keys=keys[-1], keep_queries=False)
