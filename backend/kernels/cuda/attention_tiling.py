"""How attention is divided among warps, for few rows and for many."""

from __future__ import annotations

from dataclasses import dataclass

from .fragments import TILE


@dataclass(frozen=True)
class AttentionTiling:
    """How the work is divided.

    Attributes:
        warps: of a block.
        keys: of a block of keys, a multiple of 16.
        share_keys: the warps of a block have the same 16 rows, and take turns with the keys.
    """

    warps: int = 4
    keys: int = 64
    share_keys: bool = False

    @property
    def rows(self) -> int:
        """Of a block."""
        return TILE if self.share_keys else TILE * self.warps


GREATEST = 128
"""Size of a head: the results of larger ones do not fit into registers."""


FEW = AttentionTiling(warps=4, keys=32, share_keys=True)
"""For no more rows than one warp has."""


def many(size: int) -> AttentionTiling:
    """For more rows; the scores of fewer keys beside large results."""
    return AttentionTiling(keys=64 if size <= GREATEST // 2 else 32)
