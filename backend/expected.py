"""What an engine must return: reference outputs of samples, and the bound of its error.

The bound follows from the model, not from an engine. Where nothing is rounded it is four times the
distance between the float64 and the float32 run of the numpy reference; a model that computes in
float16 is as much further off as its ε is larger. Where activations are rounded to int8 this would
say nothing: one float32 rounding tips a value over a boundary, every later layer multiplies such
flips, and two correct runs differ by about what the rounding itself does. There the whole model is
held to twice that effect, and `layer_check` holds each layer, given the engine's own input to it,
to the rounding of float32.
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
EXACT = "4 x the distance between the float32 and the float64 run of the numpy reference"
ROUNDED = "2 x the effect of rounding activations to int8, which is chaotic; layers are held apart"
DROWNING = 0.25
"""A rounding effect from which a bound of twice the effect hardly refuses anything."""
COARSE = "; times ε of {} over that of float32, to which errors are in proportion"
FLOOR = 16 * float(np.finfo(np.float32).eps)
"""Below this bound an error says nothing: outputs themselves are rounded to float32."""
_EPSILONS = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).eps),
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Expected:
    """Reference outputs of samples.

    Attributes:
        outputs: for each sample, the float64 reference's outputs in the dtypes of the graph.
        tolerance: for each output, the largest relative error an engine may have.
        derivation: of the tolerance.
        rounding_effect: largest relative change that `activations=int8` makes to an output; None
            if nothing is rounded.
    """

    outputs: list[dict[str, NDArray[Any]]]
    tolerance: dict[str, float]
    derivation: str
    rounding_effect: float | None

    def warnings(self) -> list[str]:
        """A sentence if the whole-model check hardly finds anything, with the reason."""
        if self.rounding_effect is not None:
            if self.rounding_effect < DROWNING:
                return []
            return [
                f"rounding activations to int8 changes the checked outputs by "
                f"{self.rounding_effect:.0%}, so `verify` can hardly tell a wrong engine there "
                "(layers were checked one by one); give calibration data of real inputs, or "
                "activations=float"
            ]
        loose = {name: bound for name, bound in self.tolerance.items() if bound >= DROWNING}
        if not loose:
            return []
        name = max(loose, key=loose.__getitem__)
        return [
            f"rounding in the model's type may change {name} by {loose[name]:.0%} on the checked "
            f"inputs, so `verify` can hardly tell a wrong engine there ({len(loose)} of "
            f"{len(self.tolerance)} outputs); give calibration data of real inputs"
        ]


def expected_outputs(model: ir.Model, samples: Sequence[Arrays]) -> Expected:
    """Runs the numpy reference of the rewritten `model` on every sample."""
    rounds = any(
        node.structure.activations == "int8" and not node.gathers
        for node in structured_nodes(model)
    )
    coarsest = _coarsest_type(model)
    epsilon = _EPSILONS[coarsest]
    safety = SAFETY * epsilon / _EPSILONS[ir.DataType.FLOAT]
    outputs = []
    tolerance: dict[str, float] = {}
    effect = 0.0
    for sample in samples:
        exact = run_reference(model, sample)
        single = run_reference(model, sample, np.float32)
        unrounded = run_reference(model, sample, round_activations=False) if rounds else exact
        for name, value in exact.items():
            change = relative_error(value, unrounded[name])
            effect = max(effect, change)
            bound = 2 * change if rounds else safety * relative_error(single[name], value)
            floor = max(FLOOR, SAFETY * epsilon)
            tolerance[name] = max(floor, bound, tolerance.get(name, 0.0))
        outputs.append({name: value.astype(single[name].dtype) for name, value in exact.items()})
    if not rounds:
        coarse = "" if coarsest == ir.DataType.FLOAT else COARSE.format(coarsest.name.lower())
        return Expected(outputs, tolerance, EXACT + coarse, None)
    return Expected(outputs, tolerance, ROUNDED, effect)


def _coarsest_type(model: ir.Model) -> ir.DataType:
    """The floating type with the largest ε that the graph computes in, at least float32."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    computed = {ir.DataType.FLOAT, *(value.dtype for value in values)}
    return max((dtype for dtype in _EPSILONS if dtype in computed), key=_EPSILONS.__getitem__)
