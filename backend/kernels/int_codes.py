"""Integer codes with group scales, for products and for embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from ...passes.structures.int_codes import IntCodes
from .base import Output, Shapes, Step
from .codes import CodesKernel
from .formats import EightBits, Format, FourBits, SixBits, ThreeBits
from .rows import gather_rows
from .sources import Codes

_FORMATS: Mapping[int, Format] = {3: ThreeBits(), 4: FourBits(), 6: SixBits(), 8: EightBits()}


class IntCodesKernel(CodesKernel[IntCodes]):
    """The layout of `CodesKernel`, with a row in these bytes.

    - 8 bits: one int8 a code;
    - 6 bits: four codes in three bytes;
    - 4 bits: two codes a byte;
    - 3 bits: eight codes in three bytes.
    """

    def source(self, structure: IntCodes) -> Codes:
        """One plane, in groups as they were fitted."""
        return Codes(_FORMATS[structure.bits_], structure.block)

    def gather(
        self,
        structure: IntCodes,
        out_features: int,
        in_features: int,
        stored: Shapes,
        index_dtype: str,
    ) -> Step:
        """One kernel, which decodes the rows asked for and no others."""
        function = gather_rows(self.source(structure), out_features, in_features, index_dtype)
        y = Output("y", in_features, "float32")
        return Step("int_codes_gather", function, ("x", "codes", "scales"), (y,))
