"""What the contract of `Structure` is tried on: every registered one, in many forms and shapes.

Each structure comes as its own `candidates` propose it and in every value of its fields that are a
choice, on shapes that are odd, wide and tall. A new structure is tested with no new test.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from undense.passes.errors import FitError, SchemeError
from undense.passes.stats import Stats, StatsAccumulator
from undense.passes.structures import structures
from undense.passes.structures.base import Factors, Structure
from undense.passes.structures.int_codes import IntCodes
from undense.passes.structures.low_rank import LowRank
from undense.passes.structures.monarch import Monarch
from undense.passes.structures.residual import Residual
from undense.passes.structures.trit_planes import TritPlanes

SHAPES = ((48, 128), (7, 200), (60, 36), (1, 64))
EXTRA: tuple[Structure, ...] = (
    LowRank(rank=3),
    LowRank(rank=3, factor_bits=8),
    LowRank(rank=6, factor_bits=8),
    Monarch(in_blocks=8, out_blocks=3, rank=2),
    Monarch(in_blocks=2, out_blocks=4, ratio=0.3),
    Residual(IntCodes(bits_=3), rank=1),
    Residual(IntCodes(bits_=4, group=32, activations="int8"), rank=5),
    Residual(IntCodes(bits_=8, activations="int8"), rank=3),
    Residual(TritPlanes(planes=2, tied=False), rank=5),
    Residual(TritPlanes(planes=3, activations="int8"), rank=3),
)
"""What neither candidates nor choices reach; tried where the shape admits it."""
SITE = "block.3.weight"

Matrix = NDArray[np.float32]


def weight_of(shape: tuple[int, int], seed: int = 0) -> Matrix:
    """A matrix with a decaying spectrum and rows of different size."""
    rng = np.random.default_rng(seed)
    out_features, in_features = shape
    inner = min(shape)
    spectrum = 1 / np.sqrt(np.arange(1, inner + 1))
    left = rng.standard_normal((out_features, inner)) * spectrum
    scale = rng.uniform(0.2, 2, (out_features, 1))
    return (scale * (left @ rng.standard_normal((inner, in_features)))).astype(np.float32)


def stats_of(in_features: int, tokens: int | None = None, seed: int = 1) -> Stats:
    """Statistics of correlated rows; by default eight for each feature."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((in_features, in_features)) / np.sqrt(in_features)
    strength = 1 / np.sqrt(np.arange(1, in_features + 1))
    rows = rng.standard_normal((tokens or 8 * in_features, in_features)) * strength
    accumulator = StatsAccumulator(in_features)
    accumulator.update((rows @ mixing).astype(np.float32))
    return accumulator.result()


def variants(cls: type[Structure]) -> list[Structure]:
    """The default, and every value of a field that is a choice."""
    options = [cls()]
    for name, hint in typing.get_type_hints(cls).items():
        values: tuple[Any, ...] = (
            typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        )
        for value in (True, False) if hint is bool else values:
            try:
                options.append(dataclasses.replace(cls(), **{name: value}))  # type: ignore[type-var]
            except SchemeError:
                continue
    return options


def resolved(cls: type[Structure], shape: tuple[int, int]) -> list[Structure]:
    found = list(cls.candidates(*shape))
    for option in variants(cls) + [extra for extra in EXTRA if type(extra) is cls]:
        try:
            found.append(option.resolve(*shape, site=SITE))
        except FitError:
            continue
    return list(dict.fromkeys(found))


def _any_rank(structure: Structure) -> str:
    """The scheme, whatever its rank, blocks and activations: its fit takes the same steps."""
    return re.sub(r"(rank|blocks)=\d+|,?activations=\w+", "", str(structure)).replace("{}", "")


CASES = [
    pytest.param(structure, shape, id=f"{structure}-{shape[0]}x{shape[1]}")
    for cls in structures().values()
    for shape in SHAPES
    for structure in resolved(cls, shape)
]
FIRST_CASES = [
    pytest.param(structure, SHAPES[0], id=str(structure))
    for cls in structures().values()
    for structure in resolved(cls, SHAPES[0])
]
_QUICK = {_any_rank(case.values[0]): case for case in FIRST_CASES}.values()
FITS = [
    case if case in _QUICK else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    for case in FIRST_CASES
]
every_case = pytest.mark.parametrize(("structure", "shape"), CASES)
every_structure = pytest.mark.parametrize(("structure", "shape"), FIRST_CASES)
every_fit = pytest.mark.parametrize(("structure", "shape"), FITS)
every_kind = pytest.mark.parametrize("cls", structures().values(), ids=structures().keys())


def fits_best(structure: Any) -> bool:
    """Whether it fits by its own best method, not by a published one kept for comparison."""
    return getattr(structure, "fit_", None) == getattr(type(structure)(), "fit_", None)


@cache
def fitted(structure: Structure, shape: tuple[int, int], *, data: bool = False) -> Factors:
    stats = stats_of(shape[1]) if data else None
    return structure.fit(weight_of(shape), stats, seed=0, site=SITE)
