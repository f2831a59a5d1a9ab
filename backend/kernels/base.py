"""`Kernel`: how one structure is stored for TVM and lowered to primitive functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...passes.errors import LoweringError
from ...passes.structures.base import Factors, Structure

if TYPE_CHECKING:
    from tvm import relax

Packed = dict[str, NDArray[np.generic]]
"""The stored tensors of one weight by suffix; `lower` takes them as Relax expressions."""

S = TypeVar("S", bound=Structure)


class Kernel(ABC, Generic[S]):
    """The computes of one structure. Stateless; `structure` is always a resolved one."""

    @abstractmethod
    def pack(self, structure: S, factors: Factors) -> Packed:
        """The tensors that weights.safetensors stores; codes stay packed.

        A structure that can be gathered is packed once: `lower` and `lower_gather` read the same
        tensors.
        """

    @abstractmethod
    def lower(
        self,
        builder: relax.BlockBuilder,
        structure: S,
        x: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """`x Ŵᵀ`, `[..., out_features]` float32, for `x: [..., in_features]` float32.

        Call it inside a binding block of `builder`. `x` has any rank from 1, with symbolic
        leading dimensions; the kernels see one flat, symbolic number of rows, so equal shapes
        share one PrimFunc. `packed` holds expressions of the shapes and dtypes of `pack`.
        The PrimFuncs carry `tirx.is_scheduled` and their schedule fits `Target.current()`.
        """

    def lower_gather(
        self,
        builder: relax.BlockBuilder,
        structure: S,
        indices: relax.Expr,
        packed: Mapping[str, relax.Expr],
        out_features: int,
        in_features: int,
    ) -> relax.Expr:
        """`Ŵ[indices]`, `[*indices.shape, in_features]` float32; negative ones count from the end.

        Does not check bounds: an index outside `[-out_features, out_features)` is clamped, so that
        it reads some row of the table and never memory beyond it.
        """
        raise LoweringError(
            f"{structure}: rows of this form cannot be gathered; keep the embedding dense or "
            "choose int_codes for it"
        )
