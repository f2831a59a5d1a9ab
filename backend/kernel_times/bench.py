"""Compiles the layers of one shape and times them in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...passes.progress import Progress
from ...passes.structures.base import Form
from ...runtime.bench import finished
from ...runtime.session import Session
from ..target import Target
from .built import built
from .layer import Layer, Time
from .machine import cache_bytes
from .models import copies_of, empty_inputs, empty_model, inputs_for, layer_model
from .rounds import in_rounds

_SECONDS = 0.3
"""For a layer with all of its numbers of rows, unless a few calls take longer."""


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
    """

    target: Target
    form: Form
    threads: int
    steps: Steps

    def times(self, by_rows: Mapping[int, Sequence[Layer]]) -> dict[int, dict[Layer, Time]]:
        """The times of layers of one shape by rows; those of the same rows take turns."""
        layers = list(dict.fromkeys(layer for found in by_rows.values() for layer in found))
        cache = cache_bytes(self.target)
        copies = {layer: copies_of(layer, cache) for layer in layers}
        with tempfile.TemporaryDirectory(prefix="undense-times-") as folder:
            sessions = self._sessions(copies, Path(folder))
            found = {
                rows: self._timed(sessions, {layer: copies[layer] for layer in timed}, rows, share)
                for share in [_SECONDS / len(by_rows)]
                for rows, timed in by_rows.items()
            }
        self.steps.done(len(layers))
        return found

    def _sessions(self, copies: Mapping[Layer, int], folder: Path) -> dict[Layer | int, Session]:
        """Of each layer, and of a call that does nothing by its number of copies."""
        sessions: dict[Layer | int, Session] = {}
        for layer, number in copies.items():
            path = folder / str(len(sessions))
            model = layer_model(layer, number, self.form)
            sessions[layer] = built(model, self.target, path, self.threads)
            self.steps.done()
        for layer, number in copies.items():
            if number not in sessions:
                path = folder / str(len(sessions))
                model = empty_model(layer, number)
                sessions[number] = built(model, self.target, path, self.threads)
        return sessions

    def _timed(
        self,
        sessions: Mapping[Layer | int, Session],
        copies: Mapping[Layer, int],
        rows: int,
        seconds: float,
    ) -> dict[Layer, Time]:
        calls: dict[Layer | int, Callable[[], object]] = {}
        for layer, number in copies.items():
            calls[layer] = partial(finished, sessions[layer], inputs_for(layer, rows))
            calls[number] = partial(finished, sessions[number], empty_inputs(layer, rows))
        samples = in_rounds(calls, seconds * len(copies))
        return {
            layer: Time.of_calls(samples[layer], float(np.median(samples[number])), number)
            for layer, number in copies.items()
        }
