"""Compiles the layers of one shape and times them in turns."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ...passes.errors import LoweringError
from ...passes.progress import Progress
from ...passes.structures.base import Form
from ...runtime.bench import finished
from ...runtime.session import Session, load
from ..target import Target
from .built import write
from .footprint import Footprint, between, copies_of
from .layer import Layer, Time, at_pace
from .machine import cache_bytes
from .models import (
    activation_bytes,
    bytes_of,
    empty_inputs,
    empty_model,
    inputs_for,
    layer_model,
)
from .rounds import PAUSES, in_rounds

_SECONDS = 0.15
"""For a layer with each of its numbers of rows, unless a few calls take longer."""
_LOADED_BYTES = 96 * 2**20
"""Of what takes turns, beside the dense form: all forms of a large layer would not fit."""


class Steps:
    """Tells a progress bar of each layer that is compiled, and then timed."""

    def __init__(self, progress: Progress, layers: int) -> None:
        self._progress, self._total, self._done = progress, 2 * layers, 0

    def done(self, number: int = 1) -> None:
        """So many are."""
        self._done += number
        self._progress(self._done, self._total, "kernel times")


@dataclass(frozen=True)
class Bench:
    """How layers are compiled and run.

    Attributes:
        target: engine and machine.
        form: of structured nodes.
        threads: of a session.
        steps: is told what is done.
        footprint: of the model that the layers are of.
        executor: compiles; None to do that here.
    """

    target: Target
    form: Form
    threads: int
    steps: Steps
    footprint: Footprint = None
    executor: Executor | None = None

    def times(self, by_rows: Mapping[int, Sequence[Layer]]) -> dict[int, dict[Layer, Time]]:
        """The times of layers of one shape by rows; those of the same rows take turns.

        All have the pace that the machine had for the first of them, the dense one.
        """
        layers = list(dict.fromkeys(layer for found in by_rows.values() for layer in found))
        cache = cache_bytes(self.target)
        copies = {layer: copies_of(layer, cache, self.footprint) for layer in layers}
        found: dict[int, dict[Layer, Time]] = {rows: {} for rows in by_rows}
        with tempfile.TemporaryDirectory(prefix="undense-times-") as folder:
            paths = self._compiled(copies, Path(folder))
            held = {layer: self._held(layer, copies[layer], max(by_rows)) for layer in layers}
            for group in _groups(held):
                together = {layer: copies[layer] for layer in group}
                left = {r: timed for r, timed in by_rows.items() if set(timed) - found[r].keys()}
                for rows, times in self._of_group(together, left, paths).items():
                    found[rows] |= at_pace(times, layers[0], found[rows].get(layers[0]))
        self.steps.done(len(layers))
        return found

    @cached_property
    def _between(self) -> Callable[[], object]:
        return between(self.footprint, self.target)

    def _of_group(
        self,
        copies: Mapping[Layer, int],
        by_rows: Mapping[int, Sequence[Layer]],
        paths: Mapping[Layer | int, Path],
    ) -> dict[int, dict[Layer, Time]]:
        """The times of layers that are loaded together, and let go of before the next are."""
        names: set[Layer | int] = {*copies, *copies.values()}
        sessions = {name: load(paths[name], num_threads=self.threads) for name in names}
        found = {}
        for rows, timed in by_rows.items():
            together = {layer: number for layer, number in copies.items() if layer in timed}
            if len(together) > 1 or len(timed) == 1:  # the dense layer is in each group
                found[rows] = self._timed(sessions, together, rows, _SECONDS)
        return found

    def _held(self, layer: Layer, copies: int, rows: int) -> int:
        """Bytes of a loaded model; sessions of TVM use the same memory for what they compute."""
        computed = 0 if self.target.engine == "tvm" else activation_bytes(layer, rows)
        return copies * bytes_of(layer) + computed

    def _compiled(self, copies: Mapping[Layer, int], folder: Path) -> dict[Layer | int, Path]:
        """Of each layer, and of a call that does nothing by its number of copies."""
        wanted: dict[Layer | int, tuple[Layer, int]] = {
            layer: (layer, number) for layer, number in copies.items()
        }
        empty = {number: (layer.dense, number) for layer, number in copies.items()}
        paths = {name: folder / str(place) for place, name in enumerate((*wanted, *empty))}
        jobs = [
            partial(_compile, *what, self.form, self.target, paths[name], empty=name in empty)
            for name, what in (*wanted.items(), *empty.items())
        ]
        run = map if self.executor is None else self.executor.map
        try:
            for place, _ in enumerate(run(operator.call, jobs)):
                if place < len(wanted):
                    self.steps.done()
        except BrokenExecutor as error:
            raise LoweringError(
                f"{next(iter(wanted))}: a process that compiles it to be timed was ended, as "
                "systems do when memory runs out; free memory and plan again: what was timed is "
                "kept"
            ) from error
        return paths

    def _timed(
        self,
        sessions: Mapping[Layer | int, Session],
        copies: Mapping[Layer, int],
        rows: int,
        seconds: float,
    ) -> dict[Layer, Time]:
        dense = next(iter(copies))
        inputs = inputs_for(dense, rows)
        nothing = empty_inputs(dense, rows) if dense.gathers else inputs
        calls: dict[Layer | int, Callable[[], object]] = {}
        for layer, number in copies.items():
            calls[layer] = partial(finished, sessions[layer], inputs)
            calls[number] = partial(finished, sessions[number], nothing)
        samples = in_rounds(
            calls,
            seconds * len(copies),
            pause=PAUSES[self.target.engine],
            between=self._between,
        )
        return {
            layer: Time.of_calls(samples[layer], float(np.median(samples[number])), number)
            for layer, number in copies.items()
        }


def _compile(
    layer: Layer, copies: int, form: Form, target: Target, path: Path, *, empty: bool
) -> None:
    model = empty_model(layer, copies) if empty else layer_model(layer, copies, form)
    write(model, target, path)


def _groups(held: Mapping[Layer, int]) -> Iterator[list[Layer]]:
    """Layers of one shape that are loaded at a time, by their bytes; the first is in each group."""
    dense, *others = held
    group, size = [dense], 0
    for layer in others:
        size += held[layer]
        if size > _LOADED_BYTES and len(group) > 1:
            yield group
            group, size = [dense], held[layer]
        group.append(layer)
    yield group
