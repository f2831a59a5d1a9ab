"""Traces: schedules that a search has found for functions which no rule of ours fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError, Trace

from ...passes.errors import LoweringError

Traces = Mapping[str, Any]
"""Traces as JSON by what `function_key` says."""

_traces: ContextVar[Traces] = ContextVar("traces", default={})  # noqa: B039 (never written to)

_met: ContextVar[set[str] | None] = ContextVar("met", default=None)


@contextmanager
def traced(traces: Traces) -> Iterator[set[str]]:
    """Functions that no rule fits take these meanwhile; yields the keys of those that were met."""
    met = set[str]()
    tokens = _traces.set(traces), _met.set(met)
    try:
        yield met
    finally:
        _traces.reset(tokens[0])
        _met.reset(tokens[1])


def function_key(function: Any) -> str:
    """What a function computes and on which shapes, hashed: the same in every process."""
    return f"{tvm_ffi.structural_hash(function) & (1 << 64) - 1:016x}"


def found_for(function: Any) -> Any | None:
    """The trace to schedule a function by, if there is one."""
    key = function_key(function)
    if (met := _met.get()) is not None:
        met.add(key)
    return _traces.get().get(key)


def replayed(function: Any, trace: Any) -> Any:
    """A function as a trace schedules it.

    Raises:
        LoweringError: the trace is not one of this function.
    """
    schedule = Schedule(tvm.IRModule({"main": copied(function)}))
    try:
        Trace.apply_json_to_schedule(trace, schedule)
    except (ScheduleError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise LoweringError(
            f"the tuning record of function {function_key(function)} does not fit it: tune again, "
            "or compile without tuned tilings"
        ) from error
    return schedule.mod["main"]


def copied(function: Any) -> Any:
    """A function that shares nothing with another one: schedules change functions in place."""
    return tvm.ir.load_json(tvm.ir.save_json(function))
