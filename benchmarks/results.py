"""`benchmarks/results/MODEL.json`: the rows of a model, each with what it was made on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from undense.runtime.hardware import machine

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi")
_FOLDERS = ("frontend", "passes", "backend", "runtime")

Row = dict[str, Any]


@cache
def source_hash() -> str:
    """Sixteen digits of the sha256 of the library's Python files: the version behind a row."""
    files = [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("*.py"), *files]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """The rows of one model, in the order of the script; written whole after every row."""

    def __init__(self, model: str, threads: int, folder: Path = FOLDER) -> None:
        self.path = folder / f"{model}.json"
        document = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._rows: dict[str, Row] = {row["name"]: row for row in document.get("rows", [])}
        self._head = {"model": model, "command": f"python -m benchmarks.{model}"}
        self._environment = {
            "machine": machine(),
            "threads": threads,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "sources": source_hash(),
        }

    def current(self, name: str) -> bool:
        """Whether the row is there and was made by these sources, packages and machine."""
        return self._rows.get(name, {}).get("environment") == self._environment

    def put(self, name: str, row: Row, order: list[str]) -> None:
        """Adds or replaces a row; rows whose names are not in `order` are dropped."""
        self._rows[name] = {"name": name} | row | {"environment": self._environment}
        rows = [self._rows[known] for known in order if known in self._rows]
        write_whole(self.path, json.dumps(self._head | {"rows": rows}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once: what was there stays if this is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
