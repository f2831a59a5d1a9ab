"""Which lowering belongs to which operator of the standard domain. A new family costs one line."""

from __future__ import annotations

from functools import cache

from .node import Lowering


@cache
def operators() -> dict[str, Lowering]:
    """Every covered operator of the standard domain by its name."""
    from . import (
        attention,
        convolution,
        creation,
        elementwise,
        indexing,
        matmul,
        normalization,
        reduction,
        shape,
        slicing,
    )

    families = (
        attention,
        convolution,
        creation,
        elementwise,
        indexing,
        matmul,
        normalization,
        reduction,
        shape,
        slicing,
    )
    return {name: lowering for family in families for name, lowering in family.LOWERINGS.items()}
