"""`Program`: one tiling of a kernel at one number of rows, compiled on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

from ..kernels.base import Step
from ..kernels.lowering import lowering_context
from ..kernels.targets import Workload, tuned
from ..relax_build.work import Work


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a kernel with one tiling.

    Attributes:
        fields: of the tiling, that differ from the rule's.
        steps: all of the kernel.
        decided: positions of those whose code depends on the tiling; only these are measured.
    """

    fields: Mapping[str, Any]
    steps: Sequence[Step]
    decided: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Of the functions to measure."""
        return [f"step_{position}" for position in self.decided]

    def compile(self, target: Any) -> Any:
        """The machine code of the functions to measure."""
        functions = {
            name: self.steps[position].function.with_attr("global_symbol", name)
            for name, position in zip(self.names, self.decided, strict=True)
        }
        with lowering_context():
            return tvm.compile(tvm.IRModule(functions), target=target)


def programs(
    workload: Workload,
    work: Work,
    rows: int,
    tilings: Iterable[Mapping[str, Any]],
    trials: int,
    target: Any,
) -> tuple[Program, list[Program]]:
    """The program of the rule's tiling, and up to `trials` of others whose code differs.

    Args:
        workload: the kernel.
        work: how its steps are made.
        rows: that are measured.
        tilings: the fields of each that differ from the rule's.
        trials: how many to take.
        target: of TVM.
    """

    def make(fields: Mapping[str, Any]) -> tuple[Sequence[Step], tuple[int, ...]]:
        # Only for the rows that are measured: code that differs elsewhere is no other candidate.
        with target, tuned({(*workload, rows): fields}):
            steps = work.make()
        return steps, tuple(tvm_ffi.structural_hash(step.function) for step in steps)

    own, code = make({})
    different: dict[Any, tuple[Sequence[Step], dict[str, Any]]] = {code: (own, {})}
    for fields in tilings:
        if len(different) > trials:
            break
        steps, other = make(fields)
        different.setdefault(other, (steps, dict(fields)))
    decided = tuple(
        position
        for position, _ in enumerate(own)
        if len({code[position] for code in different}) > 1
    )
    first, *others = (Program(fields, steps, decided) for steps, fields in different.values())
    return first, others


def arguments(work: Work, program: Program, rows: int, seed: int) -> list[list[NDArray[Any]]]:
    """The arguments of each function to measure: random inputs, and outputs of zeros."""
    random = np.random.default_rng(seed)
    values = {"x": filled(random, (rows, work.features), work.dtype)}
    for suffix, (shape, dtype) in work.stored.items():
        values[suffix] = filled(random, shape, dtype)
    for step in program.steps:
        for output in step.outputs:
            values[output.name] = filled(random, (rows, output.width), output.dtype)
    found = []
    for position in program.decided:
        step = program.steps[position]
        outputs = [np.zeros_like(values[output.name]) for output in step.outputs]
        found.append([*(values[name] for name in step.inputs), *outputs])
    return found


def filled(random: np.random.Generator, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Normal floats and any codes; int64 may be positions, and 0 is always one."""
    if "float" in dtype:
        return random.standard_normal(shape).astype(dtype)
    if dtype in ("int64", "bool"):
        return np.zeros(shape, dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
