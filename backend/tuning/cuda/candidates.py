"""The candidates of a product for a number of rows: those that can be launched and differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...cuda.limits import WARPS, shared_limit
from ...kernels.cuda.few_rows import FewRowsTiling
from ...kernels.cuda.product import Product
from ...kernels.cuda.products import MANY, Ruled, Tiling, product_function
from ...kernels.cuda.warpgroup_rows import WarpgroupRowsTiling
from ...kernels.targets import with_fields
from ...target import Target
from ..spaces import candidates
from .launch import Launch, lowered

_SUMS = 128
"""Registers of a thread for sums at most; with more nothing is left to multiply with."""


@dataclass(frozen=True)
class Source:
    """A tiling of a product as CUDA source.

    Attributes:
        fields: that differ from the rule's.
        function: its PrimFunc, for any number of rows.
        text: the source of its one kernel.
        launch: of it for the rows that are measured.
    """

    fields: Mapping[str, Any]
    function: Any
    text: str
    launch: Launch


def sources(ruled: Ruled, rows: int, target: Target, trials: int, seed: int) -> list[Source]:
    """The rule's own tiling first, then up to `trials` others.

    What is left out before anything is compiled: tilings that shared memory has no place for,
    those with more rows in a block than are measured, and those with the code of another one.
    """
    rule: Any = ruled.serving(rows)
    kind = ruled.product.workload[0]
    limit = shared_limit(target.architectures)
    found: dict[str, Source] = {}
    fields: Iterator[Mapping[str, Any]] = candidates(rule, kind, rows, seed)
    for changed in itertools.chain([{}], fields):
        if len(found) > trials:
            break
        tiling = with_fields(rule, changed)
        if changed and not _sensible(tiling, ruled.product, rows, limit):
            continue
        function = _function(ruled.product, tiling, target)
        text, launch = lowered(function, target, rows)
        found.setdefault(text, Source(changed, function, text, launch))
    return list(found.values())


def _function(product: Product, tiling: Tiling, target: Target) -> Any:
    """A kernel for any number of rows with one tiling."""
    with target.tvm():
        return product_function(product, ((None, tiling),))


def _sensible(tiling: Tiling, product: Product, rows: int, limit: int) -> bool:
    if tiling.shared_bytes(product.weights) > limit:
        return False
    if isinstance(tiling, FewRowsTiling):
        return True
    staged = tiling.staged if isinstance(tiling, WarpgroupRowsTiling) else tiling
    return (
        staged.warps <= WARPS
        and 4 * staged.tiles * staged.eights <= _SUMS
        and (staged.height <= rows or rows == MANY)
    )
