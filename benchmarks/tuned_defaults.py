"""Puts the records of this machine's tuning database into those that are shipped.

Measure first, on a quiet machine: compile the models of the benchmarks for `llvm` and for
`llvm -mcpu=x86-64-v3`, and run `undense tune` on each. Then `python -m benchmarks.tuned_defaults`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import undense.backend.tuning
from undense.backend.tuning.choose import Family, families
from undense.backend.tuning.database import read_records
from undense.backend.tuning.record import Record

DEFAULTS = Path(undense.backend.tuning.__file__).parent / "defaults.json"


def main() -> None:
    """Replaces the families that something was measured for."""
    records = [record for record in read_records() if isinstance(record, Record) and record.current]
    found = [filled(family, records) for family in families()]
    DEFAULTS.write_text(json.dumps({"families": found}, indent=1) + "\n", encoding="utf-8")
    for family in found:
        print(f"{family['name']}: {len(family['records'])} records")


def filled(family: Family, records: Sequence[Record]) -> dict[str, Any]:
    """A family as JSON, with the records that were measured for it if there are any.

    A record is for the first family whose instruction sets its processor has, or whose
    architecture it was compiled for.
    """
    own = [record for record in records if _family_of(record) == family.name]
    kept = {record.key: record for record in (own or family.records) if record.fields}
    return {
        "name": family.name,
        "flags": sorted(family.flags),
        "measured": bool(own) or family.measured,
        "machine": ", ".join(sorted({record.machine for record in own})) or family.machine,
        "records": [kept[key].to_json() for key in sorted(kept)],
    }


def _family_of(record: Record) -> str | None:
    architectures = frozenset(record.processor.split(","))
    flags = frozenset(record.processor.split("+")[1:])
    return next(
        (
            family.name
            for family in families()
            if family.flags <= flags or family.flags == architectures
        ),
        None,
    )


if __name__ == "__main__":
    main()
