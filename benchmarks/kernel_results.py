"""`benchmarks/results/kernels.json`: one row for each layer, number of rows and of threads."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from undense.runtime.hardware import machine

from .ggml_build import PACKAGE as GGML
from .peak import Peak
from .results import FOLDER, PACKAGES, Row, source_hash, write_whole

_KEY = ("shape", "rows", "threads", "weights", "engine", "scheme")
_SKIPPED_KEY = ("shape", "layer")
"""What tells rows apart."""


class KernelResults:
    """All rows of the file; those that are measured again replace the older ones.

    What a run was made with stands once, in `runs`; the field `run` of a row is its number there.
    """

    def __init__(self, peaks: Mapping[int, Peak], folder: Path = FOLDER) -> None:
        self.path = folder / "kernels.json"
        known = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self._runs: list[Row] = known.get("runs", [])
        self._rows = {_key(row): row for row in known.get("rows", [])}
        self._skipped = {_key(row, _SKIPPED_KEY): row for row in known.get("skipped", [])}
        self._run = {
            "machine": machine(),
            "versions": {
                **{name: importlib.metadata.version(name) for name in PACKAGES},
                GGML.name: GGML.version,
            },
            "sources": source_hash(),
            "peak": {str(threads): asdict(peak) for threads, peak in peaks.items()},
        }
        self._runs.append(self._run)

    def put(self, rows: Sequence[Row], skipped: Sequence[Row] = ()) -> None:
        """Adds rows and writes the file."""
        number = len(self._runs) - 1
        self._rows |= {_key(row): row | {"run": number} for row in rows}
        self._skipped |= {_key(row, _SKIPPED_KEY): row | {"run": number} for row in skipped}
        self._write()

    def drop_older(self) -> None:
        """Leaves what this run measured and rows of other numbers of threads; writes the file."""
        last, threads = len(self._runs) - 1, set(map(int, self._run["peak"]))
        self._rows = {
            key: row
            for key, row in self._rows.items()
            if row["run"] == last or row["threads"] not in threads
        }
        self._skipped = {key: row for key, row in self._skipped.items() if row["run"] == last}
        self._write()

    def _write(self) -> None:
        rows, skipped = list(self._rows.values()), list(self._skipped.values())
        used = sorted({row["run"] for row in [*rows, *skipped]})
        places = {number: place for place, number in enumerate(used)}
        document = {
            "command": "python -m benchmarks.kernels",
            "runs": [self._runs[number] for number in used],
            "skipped": [row | {"run": places[row["run"]]} for row in skipped],
            "rows": [row | {"run": places[row["run"]]} for row in rows],
        }
        write_whole(self.path, _compact(document))


def _key(row: Row, names: Sequence[str] = _KEY) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)


def _compact(document: Mapping[str, Any]) -> str:
    """JSON with one entry of each list a line: thousands of rows stay readable and diffable."""
    parts = []
    for name, value in document.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            parts.append(f" {json.dumps(name)}: [\n{lines}\n ]" if value else f' "{name}": []')
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
