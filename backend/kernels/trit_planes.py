"""Planes of trits: tied ones are one integer code to the kernel, free ones a sum of products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from ...passes.structures.base import Factors
from ...passes.structures.trit_planes import TritPlanes
from .base import Kernel, Packed
from .emit import Flat
from .formats import Base3Trits, Format, FourBits, TiedTrits, TwoBitTrits
from .matmul import Matmul
from .sources import Codes


class TritPlanesKernel(Kernel[TritPlanes]):
    """Stores codes `[P, ceil(m / 16), bytes, 16]` and scales `[P, ceil(m / 16), groups, 16]`.

    P is the number of free planes, and 1 for tied ones. A row's bytes run along the inputs, group
    by group; scales are float32.

    - `pack=4bit`: two tied codes a byte;
    - `pack=2bit`: four trits a byte and plane;
    - `pack=base3`: five trits a byte and plane, the last byte of a group not full.

    The bytes of tied planes take turns: one of the first plane, one of the second, and so on.
    """

    def pack(self, structure: TritPlanes, factors: Factors) -> Packed:
        """Packed codes and their scales, one for each block of the engine."""
        codes = cast(NDArray[np.int8], factors["codes" if structure.tied else "planes"])
        scales = cast(NDArray[np.float32], factors["scales"])
        if structure.tied:
            codes, scales = codes[None], scales[None]
        blocks = -(-codes.shape[-1] // structure.block)
        scales = np.repeat(scales, structure.group // structure.block, axis=-1)[..., :blocks]
        return _source(structure).pack(codes, scales)

    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: TritPlanes,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """One kernel; before it, one that rounds x, if activations are int8."""
        rounded = structure.activations == "int8"
        spec = Matmul(in_features, out_features, _source(structure), rounded=rounded)
        flat = Flat(builder, x)
        y = flat.multiply("trit_planes", spec, flat.x, [packed["codes"], packed["scales"]])
        return flat.restore(y, out_features)


def _source(structure: TritPlanes) -> Codes:
    if structure.storage == "4bit":
        return Codes(FourBits(), structure.block)
    layout: Format = TwoBitTrits() if structure.storage == "2bit" else Base3Trits()
    if not structure.tied:
        return Codes(layout, structure.block, structure.planes)
    return Codes(TiedTrits(layout, structure.planes), structure.block)
