"""`Record`: the fields of a tiling that one measurement chose, and what it was taken on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ... import __version__
from ..target import Target

SCHEDULES = 3
"""Raised when a kernel with a tiling changes: what was measured before says nothing about it."""

_COUNTS = ("out_features", "in_features", "rows", "threads")
_TIMES = ("median_us", "default_us", "spread")
_TEXTS = ("kind", "cpu", "date")


@dataclass(frozen=True)
class Record:
    """What was measured of one kernel at one number of rows.

    Attributes:
        kind: of the kernel, as it asks for its tilings.
        out_features: of the product.
        in_features: of the product.
        rows: one of the numbers of rows that a tiling is chosen for.
        cpu: the processor that code was generated for, see `cpu_name`.
        fields: of the tiling that differ from the rule's, as `with_fields` takes them; none where
            the rule's own was the best.
        median_us: microseconds of a call with these fields.
        default_us: of a call with the rule's tiling, which took turns with it.
        spread: interquartile range of the ratio of the two.
        threads: that were used.
        versions: of undense, TVM and the schedules.
        date: of the measurement.
    """

    kind: str
    out_features: int
    in_features: int
    rows: int
    cpu: str
    fields: Mapping[str, Any]
    median_us: float
    default_us: float
    spread: float
    threads: int
    versions: Mapping[str, str]
    date: str

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The kernel and number of rows that it is for."""
        return (self.kind, self.out_features, self.in_features, self.rows)

    @property
    def current(self) -> bool:
        """Whether it was measured with the schedules and the TVM at hand."""
        mine = versions()
        return all(self.versions.get(name) == mine[name] for name in ("schedules", "apache-tvm"))

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {
            field.name: dict(value) if isinstance(value, Mapping) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }

    @staticmethod
    def from_json(found: Any) -> Record:
        """The record of a JSON object.

        Raises:
            ValueError: a field is missing, not known, or of another type; names it.
        """
        if not isinstance(found, dict):
            raise ValueError("a record is no object")
        names = {field.name for field in dataclasses.fields(Record)}
        if wrong := sorted(names.symmetric_difference(found)):
            raise ValueError(f"a record lacks, or should not have, {wrong[0]}")
        for name in names:
            if not _fits(name, found[name]):
                raise ValueError(f"{name} of a record is {found[name]!r}")
        return Record(**{**found, "fields": _hashable(found["fields"])})


def versions() -> dict[str, str]:
    """What a measurement depends on beside the machine."""
    return {
        "undense": __version__,
        "apache-tvm": metadata.version("apache-tvm"),
        "schedules": str(SCHEDULES),
    }


def cpu_name(target: Target) -> str:
    """LLVM's name of the processor that code is generated for, with its vector instructions."""
    return "+".join([str(target.tvm().attrs["mcpu"]), *target.cpu_features()])


def _fits(name: str, value: Any) -> bool:
    if name in _COUNTS:
        return isinstance(value, int) and value > 0
    if name in _TIMES:
        return isinstance(value, int | float) and value >= 0
    if name in _TEXTS:
        return isinstance(value, str)
    return isinstance(value, dict)


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples, since tilings are hashed."""
    if isinstance(value, dict):
        return {name: _hashable(item) for name, item in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
