"""Candidates for functions that no rule of ours fits: random traces of TVM's MetaSchedule.

Its spaces and samples are TVM's; they are compiled and timed as all candidates are, in this process
or on a device, and not by MetaSchedule's own builder and runner, which start a process for each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import tirx

from ...passes.errors import LoweringError
from ..kernels.lowering import compacted, lowering_context
from ..relax_build.schedule import generic_schedule
from ..relax_build.traces import copied, replayed
from .program import filled

_INTRINSICS = "tvm.s_tir.tensor_intrin"
"""Imported by every search, which takes 40 seconds; the spaces of plain CPU code use none."""

_BATCH = 16
"""Samples that are drawn at once."""

_ROUNDS = 4
"""How many samples are drawn for one that is new and can be replayed, at most."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A function with one schedule.

    Attributes:
        fields: the `trace`; none for what the last rule makes of it.
        function: scheduled.
    """

    fields: Mapping[str, Any]
    function: Any

    @property
    def names(self) -> list[str]:
        """Of the one function."""
        return ["main"]

    def compile(self, target: Any) -> Any:
        """Its machine code."""
        (name,) = self.names
        module = tvm.IRModule({name: self.function.with_attr("global_symbol", name)})
        with lowering_context():
            return tvm.compile(compacted(module, {name}), target=target)


def is_fixed(function: Any) -> bool:
    """Whether all sizes of a function are known: MetaSchedule's traces are for one size."""
    return not any(tvm.ir.is_prim_var(parameter) for parameter in function.params) and all(
        isinstance(length, tirx.IntImm)
        for parameter in function.params
        for length in parameter.shape
    )


def traced_programs(
    function: Any, trials: int, target: Any, threads: int, seed: int
) -> tuple[Traced, list[Traced]]:
    """The function as the last rule schedules it, and as up to `trials` random traces do.

    Args:
        function: of known shapes, without a schedule.
        trials: how many traces at most.
        target: of TVM.
        threads: that loops are shared among.
        seed: of the traces.
    """
    default = Traced({}, generic_schedule(function)[0].without_attr("tirx.is_scheduled"))
    different = {tvm_ffi.structural_hash(default.function): default}
    for schedule in _samples(function, _ROUNDS * trials, target, threads, seed):
        trace = _plain(schedule.trace.as_json())
        try:
            scheduled = replayed(function, trace)
        except LoweringError:
            continue
        candidate = Traced({"trace": trace}, scheduled)
        different.setdefault(tvm_ffi.structural_hash(scheduled), candidate)
        if len(different) > trials:
            break
    return default, list(different.values())[1:]


def function_arguments(function: Any, seed: int) -> list[NDArray[Any]]:
    """Random inputs of a function; the last one is its output."""
    random = np.random.default_rng(seed)
    return [
        filled(random, [int(length) for length in parameter.shape], str(parameter.dtype))
        for parameter in function.params
    ]


def _samples(
    function: Any, number: int, target: Any, threads: int, seed: int
) -> Iterator[tvm.s_tir.Schedule]:
    """Up to so many schedules out of MetaSchedule's spaces for a CPU; fewer where it fails."""
    from tvm.s_tir import meta_schedule

    attributes = dict(target.attrs.items())
    with _without(_INTRINSICS):
        context = meta_schedule.TuneContext(
            tvm.IRModule({"main": copied(function).with_attr("global_symbol", "main")}),
            target=tvm.target.Target({**attributes, "kind": "llvm", "num-cores": threads}),
            space_generator=meta_schedule.space_generator.PostOrderApply(
                sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"
            ),
            search_strategy="replay-trace",
            rand_state=seed + 1,
            num_threads=1,
        )
    try:
        context.pre_tuning(max_trials=number, num_trials_per_iter=min(number, _BATCH))
        while found := context.generate_measure_candidates():
            yield from (candidate.sch for candidate in found)
            context.search_strategy.notify_runner_results(found, [])
        context.post_tuning()
    except (RuntimeError, TypeError, ValueError):  # what is a limitation of its rules
        return


@contextmanager
def _without(module: str) -> Iterator[None]:
    """What imports a module meanwhile gets an empty one, unless it has been imported before."""
    missing = module not in sys.modules
    if missing:
        sys.modules[module] = ModuleType(module)
    try:
        yield
    finally:
        if missing:
            del sys.modules[module]


def _plain(value: Any) -> Any:
    """TVM's lists, strings and numbers as Python's."""
    if isinstance(value, str | int | float | None):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, tirx.IntImm):
        return int(value)
    if isinstance(value, tirx.FloatImm):
        return float(value)
    return [_plain(item) for item in value]
