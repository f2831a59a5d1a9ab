"""The structures' kernels for GPUs: how each is stored, and its products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np

from ....passes.errors import LoweringError
from ....passes.structures.base import Factors, Structure
from ....passes.structures.block_quantized import BlockQuantized
from ....passes.structures.int_codes import IntCodes
from ....passes.structures.low_rank import LowRank
from ....passes.structures.monarch import Monarch
from ....passes.structures.trit_planes import TritPlanes
from ..base import Kernel, Packed, Shapes, Step
from ..coded_factors import CodedFactorsKernel
from ..residual import ResidualKernel
from .dtypes import Activation, activation
from .product import Product, Scatter
from .products import product_step
from .rows import gather_step
from .weights import BITS, Coded, Dense

S = TypeVar("S", bound=Structure)


@cache
def cuda_kernels(dtype: str) -> dict[str, Kernel[Any]]:
    """Every kernel by the scheme name of its structure, for activations of a type.

    Raises:
        LoweringError: there are no kernels for the type.
    """
    known = _known(dtype)
    codes = CodesKernel(known)
    parts: dict[str, Kernel[Any]] = {
        "int_codes": codes,
        "low_rank": LowRankKernel(known),
        "monarch": MonarchKernel(known),
        "trit_planes": codes,
    }
    return {**parts, "residual": ResidualKernel(parts)}


class CodesKernel(Kernel[BlockQuantized]):
    """Stores `codes`, `scales` and their units as `Coded` says.

    Tied planes are one code, `base3` is kept in whole bits: decoding it takes longer than reading.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def source(self, structure: BlockQuantized) -> Coded:
        """How the codes are stored."""
        lowest, highest, planes = -1, 1, 1
        if isinstance(structure, IntCodes):
            highest = 2 ** (structure.bits_ - 1) - 1
            lowest = -highest - 1
        elif isinstance(structure, TritPlanes) and structure.tied:
            highest = (3**structure.planes - 1) // 2
            lowest = -highest
        elif isinstance(structure, TritPlanes):
            planes = structure.planes
        bits = next(bits for bits in BITS if highest - lowest < 2**bits)
        return Coded(self.activation, bits, -lowest, structure.group, planes)

    def pack(self, structure: BlockQuantized, factors: Factors) -> Packed:
        """Planes with scales of their own, or one."""
        codes = factors["planes"] if "planes" in factors else factors["codes"][None]
        scales = factors["scales"] if factors["scales"].ndim == 3 else factors["scales"][None]
        return self.source(structure).pack(codes.astype(np.int8), scales.astype(np.float32))

    def steps(
        self, structure: BlockQuantized, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """One kernel."""
        source = self.source(structure)
        product = Product.plain(self.activation, source, out_features, in_features)
        return [product_step(structure.kind, product, ("x", "codes", "scales", "unit"))]

    def gather(
        self,
        structure: BlockQuantized,
        out_features: int,
        in_features: int,
        stored: Shapes,
        index_dtype: str,
    ) -> Step:
        """One kernel, which decodes the rows asked for and no others."""
        if not structure.gathers:
            return super().gather(structure, out_features, in_features, stored, index_dtype)
        source = self.source(structure)
        inputs = ("x", "codes", "scales", "unit")
        return gather_step(source, out_features, in_features, index_dtype, inputs)


class LowRankKernel(Kernel[LowRank]):
    """Stores `down` and `up` as `Dense` says: two products, x and y of the same type.

    Factors in codes are those of `CodedFactorsKernel`.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.coded = CodedFactorsKernel(CodesKernel(activation))

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """Both factors, their outputs first."""
        if structure.coded is not None:
            return self.coded.pack(structure, factors)
        dense = Dense(self.activation)
        return {name: dense.pack(factors[name].T[None]) for name in ("down", "up")}

    def steps(
        self, structure: LowRank, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """Two kernels."""
        if structure.coded is not None:
            return self.coded.steps(structure, out_features, in_features, stored)
        rank, dense = structure.rank, Dense(self.activation)
        assert rank is not None
        down = Product.plain(self.activation, dense, rank, in_features)
        up = Product.plain(self.activation, dense, out_features, rank)
        return [
            product_step("low_rank_down", down, ("x", "down"), "hidden"),
            product_step("low_rank_up", up, ("hidden", "up")),
        ]


class MonarchKernel(Kernel[Monarch]):
    """Stores `w1` and `w2` as `Dense` says; the first product stores its outputs permuted."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def pack(self, structure: Monarch, factors: Factors) -> Packed:
        """Both factors, the outputs of each block first."""
        dense = Dense(self.activation)
        return {name: dense.pack(factors[name].swapaxes(-1, -2)) for name in ("w1", "w2")}

    def steps(
        self, structure: Monarch, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """Two kernels."""
        (in_blocks, *_), (out_blocks, *_) = stored["w1"], stored["w2"]
        rank, dense = structure.rank, Dense(self.activation)
        assert rank is not None
        middle, depth = in_blocks * rank, in_features // in_blocks
        first = Product(
            self.activation,
            dense,
            in_blocks,
            width=out_blocks * rank,
            depth=depth,
            stride=depth,
            columns=out_blocks * middle,
            scatter=Scatter(rank, middle),
        )
        second = Product(
            self.activation,
            dense,
            out_blocks,
            width=out_features // out_blocks,
            depth=middle,
            stride=middle,
            columns=out_features,
        )
        return [
            product_step("monarch_in", first, ("x", "w1"), "hidden"),
            product_step("monarch_out", second, ("hidden", "w2")),
        ]


def dense_step(out_features: int, in_features: int, dtype: str) -> Step:
    """`(x, weight) -> y`, all of one type.

    Raises:
        LoweringError: there are no kernels for the type.
    """
    known = _known(dtype)
    product = Product.plain(known, Dense(known), out_features, in_features)
    return product_step("dense", product, ("x", "weight"))


def _known(dtype: str) -> Activation:
    known = activation(dtype)
    if known is None:
        raise LoweringError(f"there are no CUDA kernels for {dtype}; compile with dtype float16")
    return known
