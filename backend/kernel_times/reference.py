"""`Reference`: a dense layer whose time is known, beside which a run is timed at the same pace."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bench import finished
from ..target import Target
from .built import built
from .footprint import copies_of
from .layer import Layer, Time
from .machine import cache_bytes
from .models import empty_model, inputs_for, layer_model
from .rounds import PAUSES, in_rounds

_RUN, _LAYER, _EMPTY = "run", "layer", "empty"


@dataclass(frozen=True)
class Reference:
    """A dense product of a model, and what it took when the forms of its shape were timed.

    What a run takes beyond its products is a difference of times that were taken minutes apart,
    on a machine whose pace may have changed between them.

    Attributes:
        layer: dense.
        rows: of it.
        footprint: of the model, whose weights stay in the caches.
        time: that it took.
    """

    layer: Layer
    rows: int
    footprint: int
    time: Time

    def key(self) -> dict[str, Any]:
        """What a time beside it depends on."""
        return asdict(self)

    @contextmanager
    def clock(
        self, target: Target, threads: int, seconds: float
    ) -> Iterator[Callable[[Callable[[], object]], Time]]:
        """Times a call in turns with this layer while it is open: at the pace that it had.

        Args:
            target: to compile it for.
            threads: of a session.
            seconds: for each of what takes turns, unless a few calls take longer.
        """
        copies = copies_of(self.layer, cache_bytes(target), self.footprint)
        models = {
            _LAYER: layer_model(self.layer, copies, "fast"),
            _EMPTY: empty_model(self.layer, copies),
        }
        inputs = inputs_for(self.layer, self.rows)
        with tempfile.TemporaryDirectory(prefix="undense-times-") as folder:
            sessions = {
                name: built(model, target, Path(folder) / name, threads)
                for name, model in models.items()
            }

            def timed(call: Callable[[], object]) -> Time:
                calls: Mapping[str, Callable[[], object]] = {
                    _RUN: call,
                    **{name: partial(finished, held, inputs) for name, held in sessions.items()},
                }
                samples = in_rounds(
                    calls,
                    len(calls) * seconds,
                    pause=PAUSES[target.engine],
                )
                fixed = float(np.median(samples[_EMPTY]))
                now = Time.of_calls(samples[_LAYER], fixed, copies)
                return Time.of_calls(samples[_RUN], 0.0, 1).scaled(now.pace(self.time))

            yield timed
