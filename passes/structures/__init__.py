"""The registry: scheme names to structures. A new structure costs one line here."""

from __future__ import annotations

from functools import cache

from .base import DENSE_BITS, Structure


@cache
def structures() -> dict[str, type[Structure]]:
    """Every registered structure by its scheme name."""
    from .int_codes import IntCodes
    from .low_rank import LowRank
    from .monarch import Monarch
    from .residual import Residual
    from .trit_planes import TritPlanes

    return {cls.kind: cls for cls in (IntCodes, LowRank, Monarch, Residual, TritPlanes)}


def candidates(out_features: int, in_features: int) -> list[Structure]:
    """What a planner should consider for a shape: of every structure, and smaller than dense.

    All are resolved, and `activations=auto` is not decided yet. An embedding can take those with
    `gathers`.
    """
    shape = (out_features, in_features)
    dense = DENSE_BITS * out_features * in_features
    every = (option for cls in structures().values() for option in cls.candidates(*shape))
    return list(dict.fromkeys(option for option in every if option.bits(*shape) < dense))
