"""Finds the dense linears of a model: each weight is a `Site`, or a `Refusal` with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

UseForm = Literal["matmul", "left_matmul", "gemm", "conv", "gather"]


@dataclass(frozen=True, eq=False)
class Use:
    """One node that multiplies by, or gathers from, the weight of a site.

    Attributes:
        node: the MatMul, Gemm, 1x1 Conv or Gather.
        form: how the node applies the weight; `left_matmul` is `W @ x`.
        x: the activation, or the indices of a gather.
        feature_axis: the axis of x that holds in_features (may be negative); None for a gather.
    """

    node: ir.Node
    form: UseForm
    x: ir.Value
    feature_axis: int | None


@dataclass(frozen=True, eq=False)
class Site:
    """One constant weight and all nodes that use it.

    Attributes:
        name: the parameter's name, unique in the model.
        value: the initializer (or Constant output) that holds the weight.
        path: Transpose, Identity and Cast nodes between `value` and the uses, in order.
        in_features, out_features: of the dense form `y = x Wᵀ`, W `[out_features, in_features]`;
            for a gather W's rows are what is gathered.
        uses: at least one.
    """

    name: str
    value: ir.Value
    path: tuple[ir.Node, ...]
    in_features: int
    out_features: int
    uses: tuple[Use, ...]

    @property
    def gathered(self) -> bool:
        """Whether some use gathers rows: only `dense` and structures that gather are allowed."""
        return any(use.form == "gather" for use in self.uses)

    def weight(self) -> NDArray[np.float32]:
        """W as float32 `[out_features, in_features]`, read now (external data is not cached)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Refusal:
    """A weight that is not a site, and why: shown by `undense inspect`."""

    name: str
    reason: str


def find_sites(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    """All sites in topological order of their first use, and all refusals."""
    raise NotImplementedError
