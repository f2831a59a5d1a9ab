"""What was measured before: a table whose key is all that a time depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...passes.cache import Cache
from ...passes.structures.base import Form
from ...runtime.artifact import package_versions
from ..target import Target
from .layer import Layer, Time
from .machine import machine_name
from .rounds import PROCEDURE

KIND = "kernel_times"


@dataclass(frozen=True)
class Known:
    """The part of a table that holds for one machine, target and number of threads.

    Attributes:
        table: None keeps nothing.
        conditions: all that a time depends on beside the layer and its rows.
    """

    table: Cache | None
    conditions: Mapping[str, Any]

    def get(self, layer: Layer, rows: int) -> Time | None:
        """The time of a layer with so many rows; None if it was not measured yet."""
        entry = None if self.table is None else self.table.get(KIND, self._key(layer, rows))
        return None if entry is None else Time(**entry.values)

    def put(self, layer: Layer, rows: int, time: Time) -> None:
        """Keeps a time."""
        if self.table is not None:
            self.table.put(KIND, self._key(layer, rows), asdict(time))

    def _key(self, layer: Layer, rows: int) -> dict[str, Any]:
        return {**self.conditions, "layer": asdict(layer), "rows": rows}


def conditions(target: Target, form: Form, threads: int) -> dict[str, Any]:
    """All that a time depends on beside the layer and its rows, as a JSON object."""
    found = {
        "machine": machine_name(target),
        "target": str(target),
        "kernels": target.kernels,
        "form": form,
        "threads": threads,
        "versions": package_versions(),
        "procedure": PROCEDURE,
    }
    if target.engine == "ort" and not target.kernels:
        return found
    from ..kernels.blocks import PACKING
    from ..tuning.choose import UNTUNED, choose_records
    from ..tuning.record import SCHEDULES, processor_name

    compiled_for = target.compiled_for
    chosen = choose_records(compiled_for) if target.tuned else UNTUNED
    records = [sorted((key, dict(fields)) for key, fields in chosen.fields.items()), chosen.traces]
    text = json.dumps(records, sort_keys=True)
    return {
        **found,
        "processor": processor_name(compiled_for),
        "packing": PACKING,
        "schedules": SCHEDULES[target.device],
        "tuning": hashlib.sha256(text.encode()).hexdigest(),
    }
