"""Times the layers of one cell of the kernel benchmark in turns, and makes a row of each."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from undense.runtime.bench import Timing, interleaved

from .kernel_layer import Array, Call, Layer
from .kernel_limits import bytes_moved, limit
from .peak import Peak
from .results import Row

_SETTLES = {"undense": 0.2, "ggml": 0.3}
_OTHERS_SETTLE = 0.07
"""Seconds until the idle threads of an engine have gone to sleep: TVM's take 0.17 by its
own default, ggml's over 0.1, and ONNX Runtime's, of which each session has some, 0.05."""
_MIN_TIME = 0.002
_TIME_A_CELL = 6.0
"""Seconds that all samples of a cell take; it is 5 samples at least and 10 at most."""
OUT_OF_CACHE = 4
"""Copies of the weight together are so many times the last cache if it is to come from memory."""


@dataclass(frozen=True)
class Cell:
    """What is the same for all layers that take turns.

    Attributes:
        rows: of x.
        cached: whether every call reads the same weight; else copies take turns.
        dense_only: whether only dense layers in float32 are timed.
    """

    rows: int
    cached: bool = True
    dense_only: bool = False

    @property
    def weights(self) -> str:
        """Where they come from."""
        return "cache" if self.cached else "memory"


def time_cell(
    layers: Sequence[Layer], cell: Cell, x: Array, threads: int, peak: Peak, *, quick: bool = False
) -> list[Row]:
    """The rows of one cell; all layers take turns.

    Args:
        layers: the first is the one that others are compared with.
        cell: what is timed.
        x: `[cell.rows, in_features]`.
        threads: of every engine.
        peak: of so many threads.
        quick: two samples of each.
    """
    largest = OUT_OF_CACHE * peak.cache_bytes["L3"]
    calls: dict[str, Call] = {}
    for layer in layers:
        copies = 1 if cell.cached else math.ceil(largest / layer.stored_bytes)
        bound = [layer.load(threads)(x) for _ in range(copies)]
        calls[layer.name] = bound[0] if copies == 1 else _in_turn(bound)
    timings = _timings(calls, threads, quick)
    best = min((timings[layer.name].median_ms for layer in layers if layer.four_bit), default=None)
    baseline = timings[layers[0].name].median_ms
    rows = []
    for layer in layers:
        calls[layer.name].run()
        errors = layer.errors(x, calls[layer.name].output())
        row = _row(layer, cell, threads, timings[layer.name], errors, peak)
        row["speedup"] = _digits(baseline / timings[layer.name].median_ms)
        row["four_bit_ratio"] = best and _digits(best / timings[layer.name].median_ms)
        rows.append(row)
    return rows


def _in_turn(calls: Sequence[Call]) -> Call:
    turns = itertools.cycle([call.run for call in calls])

    def run() -> object:
        return next(turns)()

    return Call(run, calls[0].output, calls)


def _timings(calls: Mapping[str, Call], threads: int, quick: bool) -> dict[str, Timing]:
    time.sleep(max(_SETTLES.values()))
    seconds = 0.0
    for call in calls.values():
        call.run()
        start = time.perf_counter()
        call.run()
        seconds += max(_MIN_TIME, time.perf_counter() - start)
    repeats = 2 if quick else max(5, min(10, int(_TIME_A_CELL / seconds)))
    pause = _settled if threads > 1 else 0.0
    runs = {name: call.run for name, call in calls.items()}
    return interleaved(runs, repeats, _MIN_TIME, pause=pause)


def _settled(before: str | None, name: str) -> float:
    """Seconds to wait between two layers; those of undense share their threads."""
    if before is None:
        return 0.0
    engine = before.split()[0]
    if engine in _SETTLES and name.startswith(engine):
        return 0.0
    return _SETTLES.get(engine, _OTHERS_SETTLE)


def _row(
    layer: Layer,
    cell: Cell,
    threads: int,
    timing: Timing,
    errors: tuple[float | None, float | None],
    peak: Peak,
) -> Row:
    bound = limit(layer, cell.rows, peak, cached=cell.cached)
    moved = bytes_moved(layer, cell.rows)
    return {
        "shape": [layer.out_features, layer.in_features],
        "rows": cell.rows,
        "threads": threads,
        "weights": cell.weights,
        "engine": layer.engine,
        "scheme": layer.scheme,
        "four_bit": layer.four_bit,
        "stored_bytes": layer.stored_bytes,
        **{
            name: value if isinstance(value, int) else _digits(value)
            for name, value in asdict(timing).items()
        },
        "gflops": _digits(2e-6 * layer.macs * cell.rows / timing.median_ms),
        "gb_per_s": _digits(1e-6 * moved / timing.median_ms),
        "limit": bound.name,
        "limit_ms": _digits(bound.milliseconds),
        "distance": _digits(timing.median_ms / bound.milliseconds),
        "execution_error": errors[0] and _digits(errors[0]),
        "rounding_effect": errors[1] and _digits(errors[1]),
    }


def _digits(value: float) -> float:
    """Four digits: the noise is larger, and the file is read by people too."""
    return float(f"{value:.4g}")
