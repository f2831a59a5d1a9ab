"""Generic CPU schedules: ordered rules from a PrimFunc to its schedule, or None where none fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from ..kernels.lowering import compacted, is_scheduled
from .convolution import CONVOLUTION
from .matmul import COLUMNS, PARTIAL, PRODUCT, ROWS
from .traces import copied, found_for, replayed

_REDUCTION = 2
"""`IterVar.CommReduce`: the kind of a loop that sums."""

_LANES = 16
"""Entries of one vector loop."""

Rule = Callable[[Any], Any]

GENERIC = "sums"
"""Name of the last rule, which knows nothing of what a function computes."""

SEARCHED = "searched"
"""In the place of a rule's name: a trace that was found by measuring."""


def apply_schedules(module: Any) -> tuple[Any, dict[str, str | None]]:
    """Schedules every PrimFunc of a module that no kernel has scheduled; the first fit wins.

    A function that no rule fits takes the trace that was found for it. Without one the last rule
    has it, or it keeps its plain loops: slow, and correct.

    Returns:
        The module, and by the name of each such function that of its rule: None where none fitted.
    """
    found = {
        variable: _schedule(function)
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc) and not is_scheduled(function)
    }
    for variable, (function, _) in found.items():
        module.update_func(variable, function)
    rules = {str(variable.name_hint): rule for variable, (_, rule) in found.items()}
    return compacted(module, set(rules)), rules


def unfitted(module: Any) -> dict[str, Any]:
    """The functions of a module, by name, that no rule but the last one fits."""
    return {
        str(variable.name_hint): function
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
        and not is_scheduled(function)
        and _scheduled(function, _rules()) is None
    }


def generic_schedule(function: Any) -> tuple[Any, str | None]:
    """A function with the schedule of the last rule, or its plain loops; the name of the rule."""
    found = _scheduled(function, {GENERIC: _sums})
    return found or (function, None)


def _schedule(function: Any) -> tuple[Any, str | None]:
    """The scheduled function, and the name of the rule that fitted."""
    found = _scheduled(function, _rules())
    if found is not None:
        return found
    trace = found_for(function)
    if trace is not None:
        return _done(replayed(function, trace)), SEARCHED
    return generic_schedule(function)


def _scheduled(function: Any, rules: Mapping[str, Rule]) -> tuple[Any, str] | None:
    for name, rule in rules.items():
        try:
            schedule = rule(Schedule(tvm.IRModule({"main": copied(function)})))
        except ScheduleError:
            continue
        if schedule is not None:
            return _done(schedule.mod["main"]), name
    return None


def _done(function: Any) -> Any:
    return function.with_attr("tirx.is_scheduled", True)


def _rules() -> dict[str, Rule]:
    """Ordered: the first that fits wins."""
    return {
        "product": _product,
        "convolution": _convolution,
        "elementwise": _elementwise,
        "rows": _rows,
    }


def blocks_of(schedule: Any) -> list[Any]:
    """All blocks of a function."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _name(schedule: Any, block: Any) -> str:
    return str(schedule.get(block).name_hint)


def reduces(schedule: Any, block: Any) -> bool:
    """Whether a block sums, or combines entries in another way."""
    return any(int(axis.iter_type) == _REDUCTION for axis in schedule.get(block).iter_vars)


def _inlined(schedule: Any, blocks: list[Any]) -> None:
    for block in blocks:
        schedule.compute_inline(block)


def _product(schedule: Any) -> Any:
    """A tiled product and its element-wise consumers: one tile at a time, in registers."""
    blocks = blocks_of(schedule)
    partial = blocks.pop(0) if _name(schedule, blocks[0]) == PARTIAL else None
    if _name(schedule, blocks[0]) != PRODUCT or any(
        reduces(schedule, block) for block in blocks[1:]
    ):
        return None
    product, *middle, last = blocks
    _inlined(schedule, middle)
    *lead, row, column = schedule.get_loops(last)
    rows, row = schedule.split(row, [None, ROWS])
    columns, column = schedule.split(column, [None, COLUMNS])
    schedule.reorder(*lead, columns, rows, row, column)
    # One panel of columns stays in the cache while the rows pass by.
    outer = schedule.fuse(*lead, columns, rows)
    schedule.parallel(outer)
    schedule.vectorize(column)
    schedule.compute_at(product, outer)
    schedule.set_scope(product, 0, "local")
    stretches = _tile(schedule, product)
    if partial is not None:
        schedule.compute_at(partial, stretches)
        schedule.set_scope(partial, 0, "local")
        schedule.decompose_reduction(partial, _tile(schedule, partial))
    schedule.decompose_reduction(product, stretches)
    return schedule


def _tile(schedule: Any, block: Any) -> Any:
    """Sums a tile in registers, its columns in lanes; the loop over the depth is given back."""
    *_, row, column, depth = schedule.get_loops(block)
    schedule.reorder(depth, row, column)
    schedule.unroll(row)
    schedule.vectorize(column)
    return depth


def _convolution(schedule: Any) -> Any:
    """Windows and their element-wise consumers: a run of one output row at a time."""
    blocks = blocks_of(schedule)
    if _name(schedule, blocks[0]) != CONVOLUTION or len(blocks) == 1:
        return None
    convolution, *middle, last = blocks
    _inlined(schedule, middle)
    *outer, inner = schedule.get_loops(last)
    length = schedule.get(inner).extent
    if not isinstance(length, tirx.IntImm) or not outer:
        return None
    lanes = max(lane for lane in range(1, _LANES + 1) if int(length) % lane == 0)
    along, inner = schedule.split(inner, [None, lanes])
    schedule.vectorize(inner)
    schedule.parallel(schedule.fuse(*outer))
    schedule.compute_at(convolution, along, preserve_unit_loops=True)
    schedule.set_scope(convolution, 0, "local")
    axes = schedule.get(convolution).iter_vars
    loops = schedule.get_loops(convolution)[-len(axes) :]
    sums = [
        loop for loop, axis in zip(loops, axes, strict=True) if int(axis.iter_type) == _REDUCTION
    ]
    run = loops[len(axes) - len(sums) - 1]
    schedule.reorder(*sums, run)
    schedule.vectorize(run)
    schedule.decompose_reduction(convolution, sums[0])
    return schedule


def _elementwise(schedule: Any) -> Any:
    """No sums: one block, its outer loops in parallel and its inner one in vectors."""
    blocks = blocks_of(schedule)
    if any(reduces(schedule, block) for block in blocks):
        return None
    *middle, last = blocks
    _inlined(schedule, middle)
    _spread(schedule, schedule.get_loops(last))
    return schedule


def _spread(schedule: Any, loops: list[Any]) -> None:
    """The outer loops in parallel, the inner one in vectors where its length is known."""
    if not loops:
        return
    *outer, inner = loops
    if outer:
        schedule.parallel(schedule.fuse(*outer))
    _vectors(schedule, inner)


def _vectors(schedule: Any, loop: Any) -> None:
    length = schedule.get(loop).extent
    if isinstance(length, tirx.IntImm) and int(length) % _LANES == 0:
        schedule.vectorize(schedule.split(loop, [None, _LANES])[1])


def _rows(schedule: Any) -> Any:
    """Sums along the last axis (softmax, normalisation): each row by itself, rows in parallel."""
    blocks = blocks_of(schedule)
    *middle, last = blocks
    if reduces(schedule, last):
        return None
    for block in middle:
        if not reduces(schedule, block) and not _feeds_sums(schedule, block):
            schedule.compute_inline(block)
    *outer, inner = schedule.get_loops(last)
    if not outer:
        return None
    for block in reversed(blocks_of(schedule)[:-1]):
        schedule.compute_at(block, outer[-1])
        if not reduces(schedule, block):
            _vectors(schedule, schedule.get_loops(block)[-1])
    _vectors(schedule, inner)
    schedule.parallel(schedule.fuse(*outer))
    return schedule


def _feeds_sums(schedule: Any, block: Any) -> bool:
    return any(reduces(schedule, consumer) for consumer in schedule.get_consumers(block))


def _sums(schedule: Any) -> Any:
    """Any other sums: each block by itself, its leading kept axes in parallel."""
    for block in blocks_of(schedule):
        loops = schedule.get_loops(block)
        kept = []
        for loop, axis in zip(loops, schedule.get(block).iter_vars, strict=True):
            if int(axis.iter_type) == _REDUCTION:
                break
            kept.append(loop)
        if kept:
            schedule.parallel(schedule.fuse(*(kept[:-1] or kept)))
    return schedule
