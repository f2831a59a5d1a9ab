"""`Work`: a kernel of a model as something that can be made again, with another tiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..kernels.base import Step


@dataclass(frozen=True, eq=False)
class Work:
    """What one kernel of a model does, without its weights.

    Attributes:
        tiling: the rule's own.
        make: its steps, with the tilings that `kernels.targets.tuned` then gives.
        features: of x, which is `[rows, features]`.
        dtype: of x.
        stored: shape and dtype of the packed tensors by suffix.
    """

    tiling: Any
    make: Callable[[], Sequence[Step]]
    features: int
    dtype: str
    stored: Mapping[str, tuple[tuple[int, ...], str]]
