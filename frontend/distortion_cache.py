"""Distortions by model, samples and what was exchanged, as far as they were measured before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import onnx_ir as ir

from ..passes.cache import JSON, Cache
from ..passes.fingerprint import code_fingerprint, model_sha256
from ..passes.sensitivity import Change
from .sample_check import Sample
from .samples import Samples

KIND = "distortion"
"""Of the entries of the cache."""


class DistortionCache:
    """What the outputs of one model lose on some samples by fits that were made alike."""

    def __init__(
        self,
        cache: Cache | None,
        model: ir.Model,
        samples: Sequence[Sample],
        fitted: Mapping[str, JSON],
    ) -> None:
        """Looks nothing up yet.

        Args:
            cache: None keeps nothing.
            model: the dense one.
            samples: that the outputs are compared on.
            fitted: all that the weights of a scheme follow from, beside the model and the code.
        """
        self._cache, self._model = cache, model
        self._samples, self._fitted = Samples(tuple(samples)), dict(fitted)

    def of(self, changes: Mapping[str, Change], measure: Callable[[], float]) -> float:
        """The distortion with these sites changed, measured if it was not yet."""
        if self._cache is None:
            return measure()
        key = {**self._conditions, "changes": dict(changes)}
        entry = self._cache.get(KIND, key)
        if entry is not None:
            return float(entry.values["distortion"])
        found = measure()
        if math.isfinite(found):
            self._cache.put(KIND, key, {"distortion": found})
        return found

    @cached_property
    def _conditions(self) -> dict[str, JSON]:
        return {
            "model": model_sha256(self._model),
            "samples": self._samples.sha256,
            "fitted": self._fitted,
            "code": code_fingerprint(),
        }
