"""Layers × rows → milliseconds, by timing the kernels themselves: never by a formula."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...passes.cache import Cache
from ...passes.errors import InputError, SchemeError
from ...passes.progress import Progress, silent
from ...passes.structures.base import Form
from ...passes.workers import local_workers
from ...runtime.hardware import usable_cores
from ..target import Target
from .bench import Bench, Steps
from .footprint import Footprint
from .layer import DENSE, Layer, Time, at_pace
from .machine import check_measurable
from .models import structure_of
from .table import Known, conditions

_COMPILE_COST = 5e9
"""Of a layer, in the multiply-accumulates that `local_workers` counts in: two seconds of a core."""

Missing = dict[int, list[Layer]]
"""Layers of one shape that are to be timed, by rows."""


def kernel_times(
    layers: Mapping[Layer, Iterable[int]],
    target: Target,
    form: Form,
    *,
    footprint: Footprint = None,
    threads: int | None = None,
    table: Cache | None = None,
    progress: Progress = silent,
) -> dict[Layer, dict[int, Time]]:
    """Measures what each layer takes in a call with each of its numbers of rows of x.

    A small model holds copies of the layer, whose weights come from where those of the model do,
    its caches or its memory, is compiled as any model for the target, and timed; a call with
    nothing between the same inputs and outputs is subtracted. Layers of one shape and number of
    rows take turns, their dense form among them, whether it is asked for or not: what is asked of
    these times is which of them is less.

    Times that the table has are not measured again. When others of their shape are measured later,
    their dense form is timed again beside them, and by its change of pace all become comparable.

    Args:
        layers: with schemes as a plan states them, resolved; for each the numbers of rows of x.
        target: engine and machine. CUDA graphs are not measured.
        form: of structured nodes, for ONNX Runtime.
        footprint: bytes of the dense weights that a run of the model reads; None for one whose
            weights come from memory.
        threads: of a session; None is one for each core.
        table: keeps the times from one process to the next; None keeps none.
        progress: is told of layers that were compiled, and then timed.

    Returns:
        For each layer the time by rows.

    Raises:
        MissingDependencyError: a package or tool to compile or run with is missing.
        TargetError: this machine cannot run what the target's code is for.
        InputError: rows or `threads` below one, no rows for a layer, or a layer too small to be
            replaced.
        SchemeError: a scheme that is no resolved structure, or cannot gather where it has to.
        FitError: a structure that a shape does not admit.
        LoweringError: a structure without a kernel for the target.
    """
    wanted = {layer: sorted(set(rows)) for layer, rows in layers.items()}
    for layer, counts in wanted.items():
        if not counts or counts[0] < 1:
            raise InputError(
                f"{layer}: rows {counts}: name the numbers of rows to measure, of 1 or more"
            )
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    for layer in wanted:
        _check(layer, target)
    target = replace(target, graphs=None)
    check_measurable(target)
    used = usable_cores() if threads is None else threads
    known = Known(table, {**conditions(target, form, used), "footprint": footprint})
    found: dict[Layer, dict[int, Time]] = {layer: {} for layer in wanted}
    missing: dict[Layer, Missing] = {}
    for layer, counts in wanted.items():
        for count in counts:
            time = known.get(layer, count)
            if time is None:
                missing.setdefault(layer.dense, {}).setdefault(count, []).append(layer)
            else:
                found[layer][count] = time
    jobs = _built(missing)
    with local_workers(_COMPILE_COST * jobs if target.compiles else 0.0, jobs) as workers:
        bench = Bench(target, form, used, Steps(progress, jobs), footprint, workers.executor)
        for dense, by_rows in missing.items():
            for count, times in bench.times(_with(dense, by_rows)).items():
                for layer, time in _kept(known, dense, count, times).items():
                    if count in wanted.get(layer, ()):
                        found[layer][count] = time
    return {layer: dict(sorted(times.items())) for layer, times in found.items()}


def _check(layer: Layer, target: Target) -> None:
    target.check_dtype(layer.element_type)
    if layer.scheme == DENSE:
        return
    structure = structure_of(layer)
    if layer.gathers and not structure.gathers:
        raise SchemeError(f"{layer}: {structure.kind} cannot hold an embedding; leave it out")
    if getattr(structure, "activations", None) == "auto":
        raise SchemeError(
            f"{layer}: activations=auto has no kernel of its own; resolve it for target {target}, "
            f"which takes activations={target.activations}"
        )


def _with(dense: Layer, by_rows: Missing) -> Missing:
    """The layers to time by rows, their dense form among them."""
    return {count: list(dict.fromkeys([dense, *layers])) for count, layers in by_rows.items()}


def _built(missing: Mapping[Layer, Missing]) -> int:
    """How many layers are to be compiled."""
    return sum(
        len(dict.fromkeys(layer for layers in _with(dense, by_rows).values() for layer in layers))
        for dense, by_rows in missing.items()
    )


def _kept(known: Known, dense: Layer, rows: int, times: Mapping[Layer, Time]) -> dict[Layer, Time]:
    """Puts times into the table, at the pace at which it has the dense form if it has it."""
    before = known.get(dense, rows)
    kept = at_pace(times, dense, before)
    for layer, time in kept.items():
        known.put(layer, rows, time)
    # Another process may have measured it while this one did.
    return kept if before is None else {dense: before, **kept}
