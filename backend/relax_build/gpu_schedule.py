"""Schedules for GPUs of what has no kernel of ours: dlight's rules, the first that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight import gpu
from tvm.target import Target

from ...passes.errors import LoweringError
from ..kernels.lowering import compacted, is_scheduled
from .schedule import blocks_of, reduces
from .traces import copied

GENERIC_ON_GPU = "sums on a GPU"
"""Name of the last rule for functions that sum, a thread an output."""


def apply_gpu_schedules(module: Any) -> tuple[Any, dict[str, str | None]]:
    """Schedules every PrimFunc of a module that no kernel has scheduled.

    Returns:
        The module, and by the name of each such function that of its rule.

    Raises:
        LoweringError: a function that no rule fits: it would run on the host, on device memory.
    """
    target = Target.current()
    rules: dict[str, str | None] = {}
    for variable, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc) or is_scheduled(function):
            continue
        name = str(variable.name_hint)
        scheduled, rules[name] = _scheduled(name, function, target)
        module.update_func(variable, scheduled.with_attr("tirx.is_scheduled", True))
    return compacted(module, set(rules)), rules


def _scheduled(name: str, function: Any, target: Any) -> tuple[Any, str]:
    for rule_name, rule in _rules(function).items():
        try:
            found = rule.apply(function, target, False)
        except ValueError:
            # dlight's rule for transpositions takes indices that are expressions for numbers.
            continue
        if found is not None:
            schedule = found if isinstance(found, Schedule) else found[0]
            return schedule.mod["main"], rule_name
    raise LoweringError(
        f"{name}: no schedule for a GPU fits what this function computes; compile for ort-cuda"
    )


def _rules(function: Any) -> Mapping[str, Any]:
    """Ordered: the first that fits wins. Products with weights have kernels of ours."""
    return {
        "reduction": gpu.Reduction(),
        "transpose": gpu.Transpose(),
        GENERIC_ON_GPU if _sums(function) else "elementwise": gpu.Fallback(),
    }


def _sums(function: Any) -> bool:
    schedule = Schedule(tvm.IRModule({"main": copied(function)}))
    return any(reduces(schedule, block) for block in blocks_of(schedule))
