"""Which records a compile uses: the user's own for this processor, else those that are shipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from ..target import Target
from .database import read_records
from .record import FunctionRecord, Record, processor_name, record_from_json

Source = Literal["measured here", "shipped"]


@dataclass(frozen=True)
class Family:
    """Records that are shipped for the processors that have some instruction sets.

    Attributes:
        name: of the family.
        flags: of a CPU, as /proc/cpuinfo spells them, which needs all of them; or architectures of
            GPUs, the very ones that code is generated for.
        measured: whether its records were measured, and not guessed.
        machine: what they were measured on; None where they were not.
        records: of kernels; none means that the rules' own tilings stand.
    """

    name: str
    flags: frozenset[str]
    measured: bool
    machine: str | None
    records: tuple[Record, ...]

    def fits(self, target: Target) -> bool:
        """Whether its records are for what a target generates code for."""
        if target.device == "cuda":
            return self.flags == frozenset(target.architectures)
        return self.flags <= frozenset(target.cpu_features())


@dataclass(frozen=True)
class Chosen:
    """The records for a target, with where each comes from.

    Attributes:
        records: by kernel and number of rows.
        functions: measured here, by what they compute.
    """

    records: Mapping[tuple[str, int, int, int], tuple[Record, Source]]
    functions: Mapping[str, FunctionRecord]

    @property
    def fields(self) -> dict[tuple[str, int, int, int], Mapping[str, Any]]:
        """As `kernels.targets.tuned` takes them."""
        return {key: record.fields for key, (record, _) in self.records.items()}

    @property
    def traces(self) -> dict[str, Any]:
        """As `relax_build.traces.traced` takes them."""
        return {
            key: record.trace for key, record in self.functions.items() if record.trace is not None
        }

    def report(
        self, asked: Iterable[tuple[str, int, int]], met: Iterable[str] = ()
    ) -> dict[str, Any]:
        """What of it the kernels and functions that asked got, as a JSON object.

        Args:
            asked: kind, outputs and inputs of each kernel.
            met: keys of the functions that no rule fits.
        """
        kernels = sorted(set(asked))
        used = [
            {**record.to_json(), "source": source}
            for key, (record, source) in sorted(self.records.items())
            if key[:3] in kernels and record.fields
        ]
        names = ("kind", "out_features", "in_features")
        tuned = {tuple(record[name] for name in names) for record in used}
        return {
            "kernels": [dict(zip(names, kernel, strict=True)) for kernel in kernels],
            "tuned": len(tuned),
            "records": used,
            "functions": [
                {"function": key, "record": record and record.to_json()}
                for key in sorted(set(met))
                for record in [self.functions.get(key)]
            ],
        }


UNTUNED = Chosen({}, {})
"""No records at all: every kernel takes its rule's tiling."""


def choose_records(target: Target) -> Chosen:
    """The records that fit a TVM target's processor and the versions at hand.

    Raises:
        TuningError: the user's database is damaged.
    """
    processor = processor_name(target)
    chosen: dict[tuple[str, int, int, int], tuple[Record, Source]] = {}
    family = next((family for family in families() if family.fits(target)), None)
    for record in family.records if family else ():
        if record.current:
            chosen[record.key] = (record, "shipped")
    functions = {}
    for found in read_records():
        if not found.current or found.processor != processor:
            continue
        if isinstance(found, FunctionRecord):
            functions[found.function] = found
        else:
            chosen[found.key] = (found, "measured here")
    return Chosen(chosen, functions)


@cache
def families() -> tuple[Family, ...]:
    """The shipped records, the family with the most instruction sets first."""
    text = resources.files(__package__).joinpath("defaults.json").read_text(encoding="utf-8")
    return tuple(
        Family(
            found["name"],
            frozenset(found["flags"]),
            found["measured"],
            found["machine"],
            tuple(map(_kernel_record, found["records"])),
        )
        for found in json.loads(text)["families"]
    )


def _kernel_record(found: Any) -> Record:
    record = record_from_json(found)
    if not isinstance(record, Record):
        raise TypeError("functions have no shipped records")
    return record
