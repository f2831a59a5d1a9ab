"""Planes of trits: tied ones are one integer code to the kernel, free ones a sum of products."""

from __future__ import annotations

from ...passes.structures.trit_planes import TritPlanes
from .codes import CodesKernel
from .formats import Base3Trits, Format, FourBits, TiedTrits, TwoBitTrits
from .sources import Codes


class TritPlanesKernel(CodesKernel[TritPlanes]):
    """The layout of `CodesKernel`, with a row in these bytes.

    - `pack=4bit`: two tied codes a byte;
    - `pack=2bit`: four trits a byte and plane;
    - `pack=base3`: five trits a byte and plane, the last byte of a group not full.

    The bytes of tied planes take turns: one of the first plane, one of the second, and so on.
    """

    def source(self, structure: TritPlanes) -> Codes:
        """One plane of codes where planes are tied."""
        if structure.storage == "4bit":
            return Codes(FourBits(), structure.block)
        layout: Format = TwoBitTrits() if structure.storage == "2bit" else Base3Trits()
        if not structure.tied:
            return Codes(layout, structure.block, structure.planes)
        return Codes(TiedTrits(layout, structure.planes), structure.block)
