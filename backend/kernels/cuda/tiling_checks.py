"""What every tiling of a product must be: records of a tuning database may say anything."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

from tvm.target import Target

from ...cuda.limits import LEAST_SHARED, WARPS
from .weights import Weights


class BlockTiling(Protocol):
    """How a product is cut up, as far as a launch goes."""

    @property
    def warps(self) -> int:
        """Of a block."""

    def shared_bytes(self, weights: Weights) -> int:
        """Of a block."""


def check_counts(tiling: Any, **least: int) -> None:
    """Refuses a field that is no whole number, or below 1 or what is given for it.

    Raises:
        ValueError: names the field.
    """
    for field in fields(tiling):
        value, low = getattr(tiling, field.name), least.get(field.name, 1)
        if type(value) is not int or value < low:
            raise ValueError(f"{field.name} is {value!r} and no whole number from {low} on")


def check_launch(tiling: BlockTiling, weights: Weights) -> None:
    """Refuses what `Target.current()` does not launch.

    Raises:
        ValueError: says what a block has too much of.
    """
    shared, limit = tiling.shared_bytes(weights), shared_bytes_of(Target.current(allow_none=True))
    if tiling.warps > WARPS:
        raise ValueError(f"a block has {tiling.warps} warps, and {WARPS} at most")
    if shared > limit:
        raise ValueError(f"a block has {shared} bytes of shared memory, and {limit} at most")


def shared_bytes_of(target: Any) -> int:
    """Shared memory of a block on a target; where it does not say, what every GPU has."""
    stated = target.attrs.get("max_shared_memory_per_block") if target is not None else None
    return LEAST_SHARED if stated is None else int(stated)
