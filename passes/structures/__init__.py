"""The registry: scheme names to structures. A new structure costs one line here."""

from __future__ import annotations

from functools import cache

from .base import Structure


@cache
def structures() -> dict[str, type[Structure]]:
    """Every registered structure by its scheme name."""
    from .int_codes import IntCodes
    from .low_rank import LowRank
    from .monarch import Monarch
    from .residual import Residual
    from .trit_planes import TritPlanes

    return {cls.kind: cls for cls in (IntCodes, LowRank, Monarch, Residual, TritPlanes)}
