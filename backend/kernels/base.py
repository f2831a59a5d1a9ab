"""`Kernel`: how one structure is stored for TVM and lowered to primitive functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...passes.errors import LoweringError
from ...passes.structures.base import Factors, Structure

if TYPE_CHECKING:
    from .finish import Finish
    from .tir import PrimFunc

Packed = dict[str, NDArray[np.generic]]
"""The stored tensors of one weight by suffix."""

Shapes = Mapping[str, tuple[int, ...]]
"""Those of the stored tensors."""

S = TypeVar("S", bound=Structure)


@dataclass(frozen=True)
class Output:
    """What a step writes: `[rows, width]`."""

    name: str
    width: int
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call: `function(*inputs, *outputs)` over a symbolic number of rows.

    Attributes:
        name: hint for the name of the PrimFunc.
        function: scheduled for the target that was current when the step was made.
        inputs: `x`, suffixes of stored tensors and outputs of earlier steps.
        outputs: the last step of a product writes `y`.
        finish: the function that finishes its outputs before it stores them; it takes the buffers
            of the finish between its inputs and `y`. None where there is none.
    """

    name: str
    function: PrimFunc
    inputs: tuple[str, ...]
    outputs: tuple[Output, ...]
    finish: Callable[[Finish], PrimFunc] | None = None

    def renamed(self, names: Mapping[str, str]) -> Step:
        """The same call with other names for what it reads and writes."""
        return replace(
            self,
            inputs=tuple(names.get(name, name) for name in self.inputs),
            outputs=tuple(replace(out, name=names.get(out.name, out.name)) for out in self.outputs),
        )


class Kernel(ABC, Generic[S]):
    """The computes of one structure. Stateless; `structure` is always a resolved one."""

    @abstractmethod
    def pack(self, structure: S, factors: Factors) -> Packed:
        """The tensors that weights.safetensors stores; codes stay packed.

        A structure that can be gathered is packed once: `steps` and `gather` read the same
        tensors.
        """

    @abstractmethod
    def steps(
        self, structure: S, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """`y = x Ŵᵀ`, float32 `[rows, out_features]` for `x: [rows, in_features]` float32.

        Equal shapes give the same PrimFuncs. `stored` has the shapes of `pack`.
        """

    def gather(
        self, structure: S, out_features: int, in_features: int, stored: Shapes, index_dtype: str
    ) -> Step:
        """`y = Ŵ[x]`, float32 `[rows, in_features]`; negative indices count from the end.

        Does not check bounds: an index outside `[-out_features, out_features)` is clamped, so that
        it reads some row of the table and never memory beyond it.
        """
        raise LoweringError(
            f"{structure}: rows of this form cannot be gathered; keep the embedding dense or "
            "choose int_codes for it"
        )
