"""What one measurement chose, and what it was taken on: a tiling's fields, or a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ... import __version__
from ...runtime.artifact import Device
from ..target import Target

SCHEDULES: Mapping[Device, int] = {"cpu": 3, "cuda": 4}
"""Raised when a device's kernel with a tiling changes: what was measured before is not of it."""

_GPU = "sm_"
"""How the processors of GPUs begin; LLVM has no such names."""

_COUNTS = ("out_features", "in_features", "rows", "threads")
_TIMES = ("median_us", "default_us", "spread")
_TEXTS = ("kind", "processor", "machine", "date", "name", "function")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What every record says.

    Attributes:
        processor: that code was generated for, see `processor_name`.
        machine: it was measured on, the name of its CPU or GPU; empty where that is not known.
        median_us: microseconds of a call with what was chosen.
        default_us: of a call with the rule's choice, which took turns with it.
        spread: interquartile range of the ratio of the two.
        threads: of the CPU that were used.
        versions: of undense, TVM, the schedules and, for GPUs, nvcc.
        date: of the measurement.
    """

    processor: str
    machine: str
    median_us: float
    default_us: float
    spread: float
    threads: int
    versions: Mapping[str, str]
    date: str

    @property
    def current(self) -> bool:
        """Whether it was measured with the schedules and the TVM at hand."""
        mine = versions("cuda" if self.processor.startswith(_GPU) else "cpu")
        return all(self.versions.get(name) == mine[name] for name in ("schedules", "apache-tvm"))

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {
            field.name: dict(value) if isinstance(value, Mapping) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }


@dataclass(frozen=True, kw_only=True)
class Record(Measured):
    """What was measured of one kernel at one number of rows.

    Attributes:
        kind: of the kernel, as it asks for its tilings.
        out_features: of the product.
        in_features: of the product.
        rows: one of the numbers of rows that a tiling is chosen for.
        fields: of the tiling that differ from the rule's, as `with_fields` takes them; none where
            the rule's own was the best.
    """

    kind: str
    out_features: int
    in_features: int
    rows: int
    fields: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The kernel and number of rows that it is for."""
        return (self.kind, self.out_features, self.in_features, self.rows)


@dataclass(frozen=True, kw_only=True)
class FunctionRecord(Measured):
    """What was measured of one function that no rule of ours fits.

    Attributes:
        name: that it had in the model it was measured in.
        function: what it computes, as `traces.function_key` says.
        trace: its schedule as JSON; None where what the last rule does was the best.
    """

    name: str
    function: str
    trace: Any

    @property
    def key(self) -> tuple[str]:
        """The function that it is for."""
        return (self.function,)


def record_from_json(found: Any) -> Record | FunctionRecord:
    """The record of a JSON object.

    Raises:
        ValueError: a field is missing, not known, or of another type; names it.
    """
    if not isinstance(found, dict):
        raise ValueError("a record is no object")
    if "cpu" in found:  # of format 1
        found = {"processor": found["cpu"], "machine": "", **found}
        del found["cpu"]
    record_type = FunctionRecord if "function" in found else Record
    names = {field.name for field in dataclasses.fields(record_type)}
    if wrong := sorted(names.symmetric_difference(found)):
        raise ValueError(f"a record lacks, or should not have, {wrong[0]}")
    for name in names:
        if not _fits(name, found[name]):
            raise ValueError(f"{name} of a record is {found[name]!r}")
    if record_type is FunctionRecord:
        return FunctionRecord(**found)
    return Record(**{**found, "fields": _hashable(found["fields"])})


def versions(device: Device) -> dict[str, str]:
    """What a measurement on a device depends on beside the machine."""
    return {
        "undense": __version__,
        "apache-tvm": metadata.version("apache-tvm"),
        "schedules": str(SCHEDULES[device]),
    }


def processor_name(target: Target) -> str:
    """What code is generated for.

    A CPU has LLVM's name with its vector instructions; of GPUs it is all architectures, since one
    kernel has the same tiling for all of them.
    """
    if target.device == "cuda":
        return ",".join(target.architectures)
    return "+".join([str(target.tvm().attrs["mcpu"]), *target.cpu_features()])


def _fits(name: str, value: Any) -> bool:
    if name in _COUNTS:
        return isinstance(value, int) and value > 0
    if name in _TIMES:
        return isinstance(value, int | float) and value >= 0
    if name in _TEXTS:
        return isinstance(value, str)
    if name == "trace":
        return value is None or isinstance(value, list)
    return isinstance(value, dict)


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples, since tilings are hashed."""
    if isinstance(value, dict):
        return {name: _hashable(item) for name, item in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
