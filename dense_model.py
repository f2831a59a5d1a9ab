"""The dense model beside an artifact, for verbs that compare the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DenseModel:
    """A dense model in ONNX Runtime.

    Attributes:
        run: gives its outputs for inputs by name.
        typed: gives those inputs with floats of the types that the dense model takes.
    """

    run: Callable[[Mapping[str, Any]], dict[str, Any]]
    typed: Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def dense_model(model: str | None, threads: int | None = None) -> Iterator[Any]:
    """A `DenseModel`, or None without model."""
    if model is None:
        yield None
        return
    from .frontend.dense import dense_session
    from .frontend.load import load
    from .frontend.samples import typed

    loaded = load(model)
    with dense_session(loaded, threads=threads) as run:
        yield DenseModel(run, lambda sample: typed(sample, loaded))
