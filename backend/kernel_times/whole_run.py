"""A model as a whole on its target: what a run takes, alone and beside its artifact."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes.cache import Cache
from ...passes.errors import UndenseError
from ...passes.fingerprint import model_sha256
from ...passes.progress import Progress, silent
from ...runtime.bench import finished
from ...runtime.hardware import usable_cores
from ...runtime.session import Session, load
from ..target import Target
from .built import built
from .layer import Time
from .rounds import PAUSES, Name, in_rounds
from .table import conditions

KIND = "run_times"
_STAGE = "time of a run"
_SECONDS = 2.0
"""For each number of rows, unless a few calls take longer."""

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a run of the dense model and of its artifact, measured in turns."""

    dense: Time
    compiled: Time

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.compiled.median_ms / self.dense.median_ms

    def report(self) -> dict[str, Any]:
        """A JSON object."""
        return {"dense": asdict(self.dense), "compiled": asdict(self.compiled), "ratio": self.ratio}


class WholeRun:
    """The dense model on its target; it is compiled when it is first timed, and kept on disk.

    The folder goes when the object does, or with the process.

    Attributes:
        lengths: of the dynamic dimensions in a call, by its number of rows.
    """

    def __init__(
        self,
        model: ir.Model,
        target: Target,
        feeds: Mapping[int, Feed],
        lengths: Mapping[int, Mapping[str, int]] | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
            model: dense, prepared for the target.
            target: to compile for; CUDA graphs are not used.
            feeds: inputs of a call by its number of rows.
            lengths: of the dynamic dimensions in these, by their names.
        """
        self.lengths = dict(lengths or {})
        self._model = model
        self._target = replace(target, graphs=None)
        self._feeds, self._threads = dict(feeds), usable_cores()
        self._path: Path | None = None
        self._refused: dict[int, str] = {}
        """Why runs of so many rows fail: a file does not tell all bounds of its dimensions."""

    def times(self, cache: Cache | None, progress: Progress = silent) -> dict[int, Time]:
        """What a run takes, by the number of rows; those it fails with are left out from then on.

        Args:
            cache: keeps the times from one process to the next; None keeps none.
            progress: is told.
        """
        known = {} if cache is None else self._known(cache)
        missing = {rows: feed for rows, feed in self._feeds.items() if rows not in known}
        if not missing:
            return known
        progress(0, 1, _STAGE)
        session = self._session()
        for rows, feed in missing.items():
            try:
                samples = self._sampled({rows: partial(finished, session, feed)})
            except UndenseError as error:
                self._refused[rows] = str(error)
                del self._feeds[rows]
                continue
            known[rows] = _time(samples[rows])
            if cache is not None:
                cache.put(KIND, self._key(feed), asdict(known[rows]))
        progress(1, 1, _STAGE)
        return dict(sorted(known.items()))

    def beyond(
        self, sites: Mapping[int, float], cache: Cache | None, progress: Progress = silent
    ) -> tuple[dict[int, float], list[str]]:
        """Milliseconds of a run without those of its sites, and what is to be said of the others.

        Args:
            sites: milliseconds by the number of rows.
            cache: as for `times`.
            progress: is told.
        """
        runs, rest, notes = self.times(cache, progress), {}, []
        for rows, spent in sites.items():
            if rows in runs:
                rest[rows] = max(runs[rows].median_ms - spent, 0.0)
                continue
            cause = self._refused.get(rows, "none is within the model's dimensions")
            notes.append(
                f"no run of batch {rows} was timed ({cause}): its latency ratio is that of the "
                "linears alone"
            )
        return rest, notes

    def beside(self, artifact: Session, progress: Progress = silent) -> dict[int, Latency]:
        """What a run takes in the dense model and in its artifact, in turns, by its rows."""
        found: dict[int, Latency] = {}
        if not self._feeds:
            return found
        progress(0, 1, _STAGE)
        dense = self._session()
        for rows, feed in self._feeds.items():
            calls: dict[str, Callable[[], object]] = {
                "dense": partial(finished, dense, feed),
                "compiled": partial(finished, artifact, feed),
            }
            samples = self._sampled(calls)
            found[rows] = Latency(_time(samples["dense"]), _time(samples["compiled"]))
        progress(1, 1, _STAGE)
        return found

    def _sampled(self, calls: Mapping[Name, Callable[[], object]]) -> dict[Name, list[float]]:
        return in_rounds(calls, len(calls) * _SECONDS, pause=PAUSES[self._target.engine])

    def _known(self, cache: Cache) -> dict[int, Time]:
        found = {rows: cache.get(KIND, self._key(feed)) for rows, feed in self._feeds.items()}
        return {rows: Time(**entry.values) for rows, entry in found.items() if entry is not None}

    def _key(self, feed: Feed) -> dict[str, Any]:
        shapes = {name: list(np.shape(array)) for name, array in feed.items()}
        return {**self._conditions, "inputs": shapes}

    @cached_property
    def _conditions(self) -> dict[str, Any]:
        found = conditions(self._target, "fast", self._threads)
        return {**found, "model": model_sha256(self._model)}

    def _session(self) -> Session:
        if self._path is not None:
            return load(self._path, num_threads=self._threads)
        folder = Path(tempfile.mkdtemp(prefix="undense-dense-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        session = built(self._model, self._target, folder / "dense", self._threads)
        self._path = folder / "dense"
        return session


def _time(seconds: list[float]) -> Time:
    return Time.of_calls(seconds, 0.0, 1)
