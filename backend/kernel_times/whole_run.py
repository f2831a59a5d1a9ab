"""A model as a whole on its target: what a run takes, alone and beside its artifact."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
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
from ...passes.pricing import RESOLUTION_MS, SAME_TIME
from ...passes.progress import Progress, silent
from ...runtime.bench import finished
from ...runtime.hardware import usable_cores
from ...runtime.session import Session, load
from ..target import Target
from .built import built
from .layer import Time
from .reference import Reference
from .rounds import PAUSES, Name, in_rounds
from .sites import SiteTimes
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
        notes: Sequence[str] = (),
    ) -> None:
        """Compiles nothing yet.

        Args:
            model: dense, prepared for the target.
            target: to compile for; CUDA graphs are not used.
            feeds: inputs of a call by its number of rows.
            lengths: of the dynamic dimensions in these, by their names.
            notes: what is to be said of all of its times.
        """
        self.lengths = dict(lengths or {})
        self._model = model
        self._target = replace(target, graphs=None)
        self._feeds, self._threads = dict(feeds), usable_cores()
        self._notes = list(notes)
        self._path: Path | None = None
        self._refused: dict[int, str] = {}
        """Why runs of so many rows fail: a file does not tell all bounds of its dimensions."""

    def times(
        self,
        references: Mapping[int, Reference],
        cache: Cache | None,
        progress: Progress = silent,
    ) -> dict[int, Time]:
        """What a run takes, by the number of rows; those it fails with are left out from then on.

        Args:
            references: at whose pace, by the number of rows; as fast as it goes where there is
                none.
            cache: keeps the times from one process to the next; None keeps none.
            progress: is told.
        """
        keys = {rows: self._key(feed, references.get(rows)) for rows, feed in self._feeds.items()}
        known = {} if cache is None else _known(cache, keys)
        missing = {rows: feed for rows, feed in self._feeds.items() if rows not in known}
        if not missing:
            return known
        progress(0, 1, _STAGE)
        session = self._session()
        for rows, feed in missing.items():
            call = partial(finished, session, feed)
            try:
                call()
            except UndenseError as error:
                self._refused[rows] = str(error)
                del self._feeds[rows]
                continue
            known[rows] = self._timed(call, references.get(rows))
            if cache is not None:
                cache.put(KIND, keys[rows], asdict(known[rows]))
        progress(1, 1, _STAGE)
        return dict(sorted(known.items()))

    def _timed(self, call: Callable[[], object], reference: Reference | None) -> Time:
        if reference is None:
            return _time(self._sampled({"run": call})["run"])
        with reference.clock(self._target, self._threads, _SECONDS) as timed:
            return timed(call)

    def beyond(
        self,
        sites: SiteTimes,
        batches: Sequence[int],
        cache: Cache | None,
        progress: Progress = silent,
    ) -> tuple[dict[int, float], list[str]]:
        """Milliseconds of a run without those of its sites, and what is to be said of them.

        Args:
            sites: what they take.
            batches: numbers of rows.
            cache: as for `times`.
            progress: is told.
        """
        runs = self.times(sites.references, cache, progress)
        rest: dict[int, float] = {}
        notes = list(self._notes)
        for rows in batches:
            if rows in runs:
                run, alone = runs[rows].median_ms, sites.dense(rows)
                rest[rows] = max(run - alone, 0.0)
                if alone > SAME_TIME * run + RESOLUTION_MS:
                    notes.append(
                        f"at batch {rows} the linears timed alone take {alone:.3g} ms and a whole "
                        f"run {run:.3g} ms: its latency ratio is that of the linears alone"
                    )
                continue
            cause = self._refused.get(rows, "none is within the model's dimensions")
            notes.append(
                f"no run of batch {rows} was timed ({cause}): its latency ratio is that of the "
                "linears alone"
            )
        return rest, notes

    def beside(
        self, artifact: Session, progress: Progress = silent
    ) -> tuple[dict[int, Latency], list[str]]:
        """What a run takes in the dense model and in its artifact, in turns, by its rows.

        Those that fail are left out, and notes say why: an artifact keeps to bounds of indices and
        dimensions that the dense model does not state.
        """
        found: dict[int, Latency] = {}
        notes: list[str] = []
        if not self._feeds:
            return found, notes
        progress(0, 1, _STAGE)
        dense = self._session()
        for rows, feed in self._feeds.items():
            calls: dict[str, Callable[[], object]] = {
                "dense": partial(finished, dense, feed),
                "compiled": partial(finished, artifact, feed),
            }
            try:
                samples = self._sampled(calls)
            except UndenseError as error:
                notes.append(
                    f"no run of batch {rows} was timed beside the dense model ({error}): its time "
                    "is predicted alone"
                )
                continue
            found[rows] = Latency(_time(samples["dense"]), _time(samples["compiled"]))
        progress(1, 1, _STAGE)
        return found, notes

    def _sampled(self, calls: Mapping[Name, Callable[[], object]]) -> dict[Name, list[float]]:
        return in_rounds(calls, len(calls) * _SECONDS, pause=PAUSES[self._target.engine])

    def _key(self, feed: Feed, reference: Reference | None) -> dict[str, Any]:
        shapes = {name: list(np.shape(array)) for name, array in feed.items()}
        beside = None if reference is None else reference.key()
        return {**self._conditions, "inputs": shapes, "reference": beside}

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


def _known(cache: Cache, keys: Mapping[int, Mapping[str, Any]]) -> dict[int, Time]:
    found = {rows: cache.get(KIND, key) for rows, key in keys.items()}
    return {rows: Time(**entry.values) for rows, entry in found.items() if entry is not None}


def _time(seconds: list[float]) -> Time:
    return Time.of_calls(seconds, 0.0, 1)
