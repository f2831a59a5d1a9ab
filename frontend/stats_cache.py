"""Statistics by model, samples and the values that were measured together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from ..passes.cache import JSON, Cache
from ..passes.constants import read_tensor
from ..passes.fingerprint import array_sha256, code_fingerprint
from ..passes.stats import Stats
from .samples import Samples

KIND = "stats"
"""Of the entries of the cache."""

Entry = tuple[str, int]
"""What is measured: the name of a value and the axis of it that holds the features, from behind."""


class StatsCache:
    """The statistics that one model has on some samples, as far as they were measured before."""

    def __init__(self, cache: Cache, model: ir.Model, samples: Samples) -> None:
        self._cache, self._model, self._samples = cache, model, samples

    def get(self, entries: Mapping[Entry, int]) -> dict[Entry, Stats] | None:
        """What was found for these entries, or None if they were not measured together.

        Together, because ONNX Runtime rounds otherwise where a value between two nodes that it
        would fuse is asked for.
        """
        found = self._cache.get(KIND, self._key(entries))
        if found is None:
            return None
        return {
            entry: Stats(
                found.arrays[f"{index}.second_moment"], found.arrays[f"{index}.mean"], tokens
            )
            for index, (entry, tokens) in enumerate(
                zip(entries, found.values["tokens"], strict=True)
            )
        }

    def put(self, entries: Mapping[Entry, int], stats: Mapping[Entry, Stats]) -> None:
        """Keeps the statistics of these entries."""
        arrays = {}
        for index, entry in enumerate(entries):
            arrays[f"{index}.second_moment"] = stats[entry].second_moment
            arrays[f"{index}.mean"] = stats[entry].mean
        tokens = [stats[entry].tokens for entry in entries]
        self._cache.put(KIND, self._key(entries), {"tokens": tokens}, arrays)

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


def model_sha256(model: ir.Model) -> str:
    """The hash of the graph, and of the names, types, shapes and bytes of its weights.

    Where weights lie and what the exporter noted beside the nodes is no part of it.
    """
    digest = hashlib.sha256()
    graph = model.clone()
    ClearMetadataAndDocStringPass()(graph)
    for name, value in sorted(graph.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype.name} {tensor.shape}\n".encode())
            digest.update(_tensor_sha256(tensor).encode())
    graph.graph.initializers.clear()
    digest.update(ir.to_proto(graph).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _tensor_sha256(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return hashlib.sha256(repr(tensor.numpy().tolist()).encode()).hexdigest()
    return array_sha256(read_tensor(tensor))
