"""What an engine must return: reference outputs of samples, and the bound of its error.

The bound follows from the model, not from an engine: four times the distance between the float64
and the float32 run of the same numpy reference. For models that round activations to int8 this
distance includes what one float32 rounding does when it tips a value over a rounding boundary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes.nodes import structured_nodes
from ..runtime.compare import relative_error
from .reference import run_reference

SAFETY = 4.0
FLOOR = 16 * float(np.finfo(np.float32).eps)
"""Below this bound an error says nothing: outputs themselves are rounded to float32."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Expected:
    """Reference outputs of samples.

    Attributes:
        outputs: for each sample, the float64 reference's outputs in the dtypes of the graph.
        tolerance: for each output, the largest relative error an engine may have.
        rounding_effect: largest relative change that `activations=int8` makes to an output; None
            if nothing is rounded.
    """

    outputs: list[dict[str, NDArray[Any]]]
    tolerance: dict[str, float]
    rounding_effect: float | None


def expected_outputs(model: ir.Model, samples: Sequence[Arrays]) -> Expected:
    """Runs the numpy reference of the rewritten `model` on every sample."""
    rounds = any(
        getattr(node.structure, "activations", None) == "int8" and not node.gathers
        for node in structured_nodes(model)
    )
    outputs, tolerance, effects = [], {}, []
    for sample in samples:
        exact = run_reference(model, sample)
        single = run_reference(model, sample, np.float32)
        for name, value in exact.items():
            distance = SAFETY * relative_error(single[name], value)
            tolerance[name] = max(FLOOR, distance, tolerance.get(name, 0.0))
        if rounds:
            unrounded = run_reference(model, sample, round_activations=False)
            effects += [relative_error(exact[name], value) for name, value in unrounded.items()]
        outputs.append({name: value.astype(single[name].dtype) for name, value in exact.items()})
    return Expected(outputs, tolerance, max(effects, default=None))
