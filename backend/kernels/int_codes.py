"""Integer codes with group scales, unpacked as they are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from ...passes.structures.base import Factors
from ...passes.structures.int_codes import IntCodes
from .base import Kernel, Packed
from .emit import Flat
from .formats import EightBits, Format, FourBits, ThreeBits
from .matmul import Matmul
from .rows import gather_rows
from .sources import Codes

_FORMATS: Mapping[int, Format] = {3: ThreeBits(), 4: FourBits(), 8: EightBits()}


class IntCodesKernel(Kernel[IntCodes]):
    """Stores codes `[1, ceil(m / 16), bytes, 16]` and scales `[1, ceil(m / 16), groups, 16]`.

    A row's bytes run along the inputs: with 8 bits one int8 a code, with 4 bits two codes a byte,
    with 3 bits eight codes in three bytes (see `formats`). Scales are float32. The embedding reads
    the same tensors.
    """

    def pack(self, structure: IntCodes, factors: Factors) -> Packed:
        """Packed codes and their scales."""
        codes = cast(NDArray[np.int8], factors["codes"])
        scales = cast(NDArray[np.float32], factors["scales"])
        return _source(structure).pack(codes[None], scales[None])

    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: IntCodes,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """One kernel; before it, one that rounds x, if activations are int8."""
        rounded = structure.activations == "int8"
        spec = Matmul(in_features, out_features, _source(structure), rounded=rounded)
        flat = Flat(builder, x)
        y = flat.multiply("int_codes", spec, flat.x, [packed["codes"], packed["scales"]])
        return flat.restore(y, out_features)

    def lower_gather(
        self,
        builder: relax.BlockBuilder,
        structure: IntCodes,
        indices: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """One kernel; rows are decoded one by one."""
        source = _source(structure)
        func = gather_rows(source, out_features, in_features, str(indices.ty.dtype))
        flat = Flat(builder, indices, keep=0)
        arguments = [flat.x, packed["codes"], packed["scales"]]
        y = flat.call("int_codes_gather", func, arguments, (in_features, "float32"))
        return flat.restore(y, in_features)


def _source(structure: IntCodes) -> Codes:
    return Codes(_FORMATS[structure.bits_], structure.group)
