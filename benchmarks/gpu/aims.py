"""What the kernels are to reach, as ratios within one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import DECODE, HOPPER, LOW_RANK, TIED
from .runner.baselines import COMPILED, LINEAR

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """A number of a row and what it is to be at least.

    Attributes:
        case: name of the case.
        size: number of rows, or tokens in the cache.
        against: the baseline that times are divided by; None is for the share of copy bandwidth.
        wanted: the aim.
        tiles: what is accepted of kernels on `mma` tiles, where the aim needs `wgmma`.
    """

    case: str
    size: int
    against: str | None
    wanted: float
    tiles: float | None = None

    def value(self, rows: Sequence[Row]) -> float | None:
        """The measured number; None where it was not measured."""
        for row in rows:
            if row["case"] == self.case and self.size in row["sizes"].values():
                if self.against is None:
                    return float(row["of_copy_bandwidth"])
                found = row["times_as_fast_as"].get(self.against)
                return None if found is None else float(found)
        return None

    def verdict(self, value: float | None) -> str:
        """In a word or three."""
        if value is None:
            return "not measured"
        if value >= self.wanted:
            return "met"
        if self.tiles is not None and value >= self.tiles:
            return "met for mma tiles"
        return "missed"


def _product(scheme: str, shape: str) -> str:
    return f"{scheme} {shape} float16"


_LARGE, _SMALL = "4096x11008", "4096x4096"
AIMS = (
    *(Aim(_product(TIED, shape), 1, None, 0.8) for shape in (_LARGE, _SMALL)),
    Aim(_product(TIED, _LARGE), 1, LINEAR, 3.0),
    Aim(_product(TIED, _SMALL), 1, LINEAR, 2.0),
    *(Aim(_product(TIED, shape), 8, LINEAR, 2.0) for shape in (_LARGE, _SMALL)),
    *(Aim(_product(TIED, shape), 2048, LINEAR, 0.9, 0.6) for shape in (_LARGE, _SMALL)),
    *(Aim(f"{HOPPER} {_product(TIED, s)}", 2048, LINEAR, 0.9) for s in (_LARGE, _SMALL)),
    Aim(_product(LOW_RANK, _LARGE), 1, LINEAR, 3.0),
    Aim(_product(LOW_RANK, _SMALL), 1, LINEAR, 2.0),
    *(Aim(_product("dense", shape), 2048, LINEAR, 0.8, 0.6) for shape in (_LARGE, _SMALL)),
    *(Aim(f"{HOPPER} {_product('dense', s)}", 2048, LINEAR, 0.8) for s in (_LARGE, _SMALL)),
    Aim(f"decode 1b {DECODE[0][0]} head {DECODE[0][1]} bfloat16", 2047, COMPILED, 2.0),
)
