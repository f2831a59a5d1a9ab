"""Statistics by model, samples and the values that were measured together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import onnx_ir as ir

from ..passes.cache import JSON, Cache
from ..passes.fingerprint import code_fingerprint, model_sha256
from ..passes.stats import Stats
from .samples import Samples

KIND = "stats"
"""Of the entries of the cache."""

Entry = tuple[str, int]
"""What is measured: the name of a value and the axis of it that holds the features, from behind."""

Found = Stats | str
"""The statistic of an entry, or why it has none that a fit can be made under, and the remedy."""


class StatsCache:
    """The statistics that one model has on some samples, as far as they were measured before."""

    def __init__(self, cache: Cache, model: ir.Model, samples: Samples) -> None:
        self._cache, self._model, self._samples = cache, model, samples

    def get(self, entries: Mapping[Entry, int]) -> dict[Entry, Found] | None:
        """What was found for these entries, or None if they were not measured together.

        Together, because ONNX Runtime rounds otherwise where a value between two nodes that it
        would fuse is asked for.
        """
        found = self._cache.get(KIND, self._key(entries))
        if found is None:
            return None
        return {
            entry: told
            if isinstance(told, str)
            else Stats(found.arrays[f"{index}.second_moment"], found.arrays[f"{index}.mean"], told)
            for index, (entry, told) in enumerate(zip(entries, found.values["told"], strict=True))
        }

    def put(self, entries: Mapping[Entry, int], found: Mapping[Entry, Found]) -> None:
        """Keeps what was found for these entries."""
        arrays = {}
        told: list[JSON] = []
        for index, entry in enumerate(entries):
            stats = found[entry]
            if isinstance(stats, str):
                told.append(stats)
                continue
            told.append(stats.tokens)
            arrays[f"{index}.second_moment"] = stats.second_moment
            arrays[f"{index}.mean"] = stats.mean
        self._cache.put(KIND, self._key(entries), {"told": told}, arrays)

    def _key(self, entries: Mapping[Entry, int]) -> dict[str, JSON]:
        return {
            "model": self._model_sha256,
            "samples": self._samples.sha256,
            "entries": [[*entry, features] for entry, features in entries.items()],
            "code": code_fingerprint(),
        }

    @cached_property
    def _model_sha256(self) -> str:
        return model_sha256(self._model)
