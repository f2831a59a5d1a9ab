"""The file that keeps what was measured: read whole, merged under a lock, replaced atomically."""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...passes.cache import default_folder
from ...passes.errors import TuningError, cause_of
from .record import FunctionRecord, Record, record_from_json

_FORMAT = 2

_READ = (1, _FORMAT)
"""Records of format 1 have `cpu` for `processor`, and no `machine`."""


def database_path() -> Path:
    """`tuning.json` in `$UNDENSE_CACHE`, else in the folder `undense` of the user's cache."""
    return default_folder() / "tuning.json"


def read_records(path: Path | None = None) -> list[Record | FunctionRecord]:
    """All records of the database in a fixed order; none where there is no file.

    Args:
        path: of the database; None is `database_path()`.

    Raises:
        TuningError: the file cannot be read, or is damaged; names it and the remedy.
    """
    path = path or database_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise _damaged(path, cause_of(error)) from error
    except OSError as error:
        raise TuningError(
            f"{path} cannot be read ({cause_of(error)}); make it readable, or compile without "
            "tuned tilings"
        ) from error
    return records_of(text, path)


def records_of(text: str, origin: Path) -> list[Record | FunctionRecord]:
    """The records of a database's text; `origin` is named in errors.

    Raises:
        TuningError: the text is damaged, or of another format version.
    """
    try:
        document = json.loads(text)
        if document["format"] not in _READ:
            raise TuningError(
                f"{origin} has format {document['format']} and this undense reads {_FORMAT}: "
                "move it away, install the undense that wrote it, or compile without tuned tilings"
            )
        return [record_from_json(found) for found in document["records"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(origin, cause_of(error)) from error


def add_records(found: Iterable[Record | FunctionRecord], path: Path | None = None) -> Path:
    """Merges records into the database; they replace those of the same work and processor.

    Other processes may do so at the same time: nobody's records are lost.

    Raises:
        TuningError: the database is damaged or cannot be written; it is left as it is.
    """
    path = path or database_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            merged = {_place(record): record for record in (*read_records(path), *found)}
            _replace(path, [merged[key].to_json() for key in sorted(merged)])
    except OSError as error:
        raise TuningError(
            f"{path} cannot be written ({cause_of(error)}); set UNDENSE_CACHE to a folder that can"
        ) from error
    return path


def _place(record: Record | FunctionRecord) -> tuple[Any, ...]:
    return (record.processor, type(record).__name__, record.key)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock; the system frees it if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, records: list[dict[str, Any]]) -> None:
    text = json.dumps({"format": _FORMAT, "records": records}, indent=1, sort_keys=True) + "\n"
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        written.write_text(text, encoding="utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def _damaged(path: Path, cause: str) -> TuningError:
    return TuningError(
        f"{path} is damaged ({cause}): delete it and tune again, or compile without tuned tilings"
    )
