"""`Codes`: packed codes with their scales, as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import LANES, interleave
from .formats import Format, quads_of
from .tir import Argument, Buffer, Expr, index, load, ramp


@dataclass(frozen=True)
class Codes:
    """`Ŵ = Σ_p scales[p, :, group] · codes[p]`.

    Stored as words `[planes, blocks, words, 16]` and float32 scales `[planes, blocks, groups, 16]`.
    """

    format: Format
    group: int
    planes: int = 1

    def pack(
        self, codes: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> dict[str, NDArray[np.generic]]:
        """Codes `[planes, m, n]` and scales `[planes, m, groups]` as the kernels read them."""
        return {
            "codes": interleave(self.format.encode_groups(codes, self.group)),
            "scales": interleave(scales.astype(np.float32)),
        }

    def arguments(self, blocks: int, in_features: int) -> tuple[Argument, ...]:
        """The stored buffers for `blocks` blocks of 16 outputs."""
        groups, words = -(-in_features // self.group), self.row_words(in_features)
        return (
            Argument("codes", (self.planes, blocks, words, LANES), "int32"),
            Argument("scales", (self.planes, blocks, groups, LANES), "float32"),
        )

    def row_words(self, in_features: int) -> int:
        """Words of the codes of one output, in one plane."""
        full, rest = divmod(in_features, self.group)
        units = full * self.format.units(self.group) + self.format.units(rest)
        if self.format.continuous:
            units = self.format.units(in_features)
        return units * self.format.size

    def panel_bytes(self, in_features: int) -> int:
        """Bytes of the codes of a block of 16 outputs, in one plane."""
        return 4 * LANES * self.row_words(in_features)

    def first_quad(self, group: Expr) -> tuple[Expr, Expr]:
        """The unit in which a group starts, and the quad of it."""
        each = self.format.codes // 4
        if not self.format.continuous:
            return group * self.format.units(self.group), index(0)
        quad = group * quads_of(self.group)
        return quad // each, quad % each

    def words(
        self,
        codes: Buffer,
        plane: int | Expr,
        block: Expr,
        unit: Expr,
        lane: int | Expr = 0,
        lanes: int = LANES,
    ) -> list[Expr]:
        """The words of one unit, of `lanes` outputs from `lane` on."""
        first = unit * self.format.size
        places = (first + j for j in range(self.format.size))
        return [load(codes, plane, block, place, ramp(lane, lanes)) for place in places]

    def quads(
        self,
        codes: Buffer,
        plane: int | Expr,
        block: Expr,
        unit: Expr,
        lane: int | Expr = 0,
        lanes: int = LANES,
    ) -> list[Expr]:
        """The quads of one unit."""
        return self.format.quads(self.words(codes, plane, block, unit, lane, lanes))
