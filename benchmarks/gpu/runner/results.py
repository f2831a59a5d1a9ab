"""`results.json` of a run: written whole after every entry, and taken up again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .spec import Case, Sizes


class Results:
    """The document.

    Attributes:
        path: of the file.
        document: `rows` that were measured, cases that `failed`, those `left_out`, and the head.
    """

    def __init__(self, path: Path, head: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.document: dict[str, Any] = {**head, "rows": [], "failed": [], "left_out": []}
        if resume and path.exists():
            self.document = json.loads(path.read_text(encoding="utf-8")) | {"left_out": []}

    def put(self, part: str, entry: dict[str, Any]) -> None:
        """Adds an entry to `rows`, `failed` or `left_out`, and writes the file."""
        self.document[part].append(entry)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, self.path)

    def has(self, case: Case, sizes: Sizes) -> bool:
        """Whether a measurement was made, or failed."""
        entries = [*self.document["rows"], *self.document["failed"]]
        return any((e["case"], e["sizes"]) == (case.name, dict(sizes)) for e in entries)

    @property
    def wrong(self) -> list[dict[str, Any]]:
        """Rows whose error is beyond their tolerance."""
        return [row for row in self.document["rows"] if not row["correct"]]
