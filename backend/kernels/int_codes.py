"""Integer codes with group scales, for products and for embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax

from ...passes.structures.int_codes import IntCodes
from .codes import CodesKernel
from .emit import Flat
from .formats import EightBits, Format, FourBits, ThreeBits
from .rows import gather_rows
from .sources import Codes

_FORMATS: Mapping[int, Format] = {3: ThreeBits(), 4: FourBits(), 8: EightBits()}


class IntCodesKernel(CodesKernel[IntCodes]):
    """The layout of `CodesKernel`, with a row in these bytes.

    - 8 bits: one int8 a code;
    - 4 bits: two codes a byte;
    - 3 bits: eight codes in three bytes.
    """

    def source(self, structure: IntCodes) -> Codes:
        """One plane, in groups as they were fitted."""
        return Codes(_FORMATS[structure.bits_], structure.block)

    def lower_gather(
        self,
        builder: relax.BlockBuilder,
        structure: IntCodes,
        indices: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """One kernel, which decodes the rows asked for and no others."""
        dtype = str(indices.ty.dtype)
        func = gather_rows(self.source(structure), out_features, in_features, dtype)
        flat = Flat(builder, indices, keep=0)
        arguments = [flat.x, packed["codes"], packed["scales"]]
        rows = flat.call("int_codes_gather", func, arguments, (in_features, "float32"))
        return flat.restore(rows, in_features)
