"""Where a kernel takes its weights from: plain numbers, or packed codes with their scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import LANES, interleave
from .formats import Format
from .tir import Argument, Buffer, Expr, convert, load, ramp


@dataclass(frozen=True)
class Floats:
    """`[batches, blocks, in_features, 16]` floats, multiplied as they are."""

    batches: int = 1

    def arguments(self, blocks: int, in_features: int) -> tuple[Argument, ...]:
        """The stored buffers for `blocks` blocks of 16 outputs a batch."""
        return (Argument("weight", (self.batches, blocks, in_features, LANES), "float32"),)


@dataclass(frozen=True)
class Codes:
    """`Ŵ = Σ_p scales[p, :, group] · codes[p]`, decoded unit by unit.

    Stored as codes `[planes, blocks, bytes, 16]` and float32 scales `[planes, blocks, groups, 16]`.
    """

    format: Format
    group: int
    planes: int = 1

    def pack(
        self, codes: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> dict[str, NDArray[np.generic]]:
        """Codes `[planes, m, n]` and scales `[planes, m, groups]` as the kernels read them."""
        rows = self.format.encode_groups(codes, self.group)
        return {
            "codes": interleave(rows),
            "scales": interleave(scales.astype(np.float32)),
        }

    def arguments(self, blocks: int, in_features: int) -> tuple[Argument, ...]:
        """The stored buffers for `blocks` blocks of 16 outputs."""
        full, rest = divmod(in_features, self.group)
        units = full * self.format.units(self.group) + self.format.units(rest)
        groups = full + (rest > 0)
        size = units * self.format.size
        return (
            Argument("codes", (self.planes, blocks, size, LANES), self.format.dtype),
            Argument("scales", (self.planes, blocks, groups, LANES), "float32"),
        )

    def decode(
        self,
        codes: Buffer,
        plane: int | Expr,
        block: Expr,
        unit: Expr,
        lane: int | Expr,
        lanes: int,
    ) -> list[Expr]:
        """The int32 codes of one unit, of `lanes` outputs from `lane` on."""
        first = unit * self.format.size
        octets = [
            convert(load(codes, plane, block, first + j, ramp(lane, lanes)), "int32", lanes)
            for j in range(self.format.size)
        ]
        return self.format.decode(octets)
