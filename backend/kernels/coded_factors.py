"""`y = (x down) up` with both factors in codes: the kernel of codes twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...passes.structures.base import Factors
from ...passes.structures.coded_factors import CodedFactors, named
from ...passes.structures.low_rank import LowRank
from .base import Kernel, Packed, Shapes, Step

_LATENT = "latent"
_AROUND = {"down": {"y": _LATENT}, "up": {"x": _LATENT}}
"""What the product with each factor reads and writes, where it is not x and y."""


class CodedFactorsKernel(Kernel[LowRank]):
    """Stores what the kernel of codes does for each factor, behind `down_` and `up_`."""

    def __init__(self, codes: Kernel[Any]) -> None:
        self.codes = codes

    def pack(self, structure: LowRank, factors: Factors) -> Packed:
        """The tensors of `down`, then those of `up`."""
        in_features = factors["down_codes"].shape[1]
        return {
            f"{name}_{suffix}": tensor
            for name, part in _coded(structure).parts(in_features).items()
            for suffix, tensor in self.codes.pack(part, named(factors, name)).items()
        }

    def steps(
        self, structure: LowRank, out_features: int, in_features: int, stored: Shapes
    ) -> Sequence[Step]:
        """Two kernels."""
        coded, steps = _coded(structure), list[Step]()
        shapes = coded.shapes(out_features, in_features)
        for name, part in coded.parts(in_features).items():
            own = named(stored, name)
            names = {suffix: f"{name}_{suffix}" for suffix in own} | _AROUND[name]
            steps += [step.renamed(names) for step in self.codes.steps(part, *shapes[name], own)]
        return steps


def _coded(structure: LowRank) -> CodedFactors:
    assert structure.coded is not None, "factors of floats have kernels of their own"
    return structure.coded
