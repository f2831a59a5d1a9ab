"""Results by what they follow from: a folder that processes share, the least used out first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from .cache_file import PARTIAL, Arrays, DamagedEntryError, read_entry, write_entry
from .errors import InputError, cause_of

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_FORMAT = 1
_LIMIT_BYTES = 10 * 2**30
_KEPT = 0.9
"""The share of the limit that is kept once it is passed: every write would else look at all."""
_ABANDONED = 24 * 3600
"""Seconds after which a file that is still being written belongs to a process that was killed."""

_KIND = re.compile(r"[a-z][a-z0-9_-]*")
_NAME = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Entry:
    """What was stored under a key."""

    values: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredEntry:
    """A file of the cache.

    Attributes:
        kind: what made it.
        path: where it lies.
        bytes: its size.
        used: when it was last written or read, in seconds of the epoch.
    """

    kind: str
    path: Path
    bytes: int
    used: float


class Cache:
    """Values and arrays under a kind and a key, in files that other processes may use meanwhile.

    Whatever cannot be read is as if it had never been stored, and whatever cannot be written is
    warned of once: a cache saves time and must not cost a result.
    """

    def __init__(self, folder: str | Path | None = None, limit_bytes: int | None = None) -> None:
        """Names the folder; nothing is made before something is stored.

        Args:
            folder: `$UNDENSE_CACHE`, else the folder `undense` of the user's cache, if None.
            limit_bytes: of all entries together; `$UNDENSE_CACHE_LIMIT`, else 10 GiB, if None.

        Raises:
            InputError: `$UNDENSE_CACHE_LIMIT` is no size.
        """
        self.folder = default_folder() if folder is None else Path(folder)
        self.limit_bytes = _default_limit() if limit_bytes is None else limit_bytes
        self._bytes: int | None = None
        self._writable = True

    def get(self, kind: str, key: Mapping[str, JSON]) -> Entry | None:
        """What was stored last under this key, or None; a damaged entry is removed."""
        path = self._path(kind, key)
        try:
            values, arrays = read_entry(path)
        except FileNotFoundError:
            return None
        except (DamagedEntryError, OSError) as error:
            _log.debug("%s is computed again: %s", path, cause_of(error))
            if isinstance(error, DamagedEntryError):
                _remove(path)
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read keeps no order of use
            os.utime(path)
        return Entry(values, arrays)

    def put(
        self,
        kind: str,
        key: Mapping[str, JSON],
        values: Mapping[str, JSON],
        arrays: Arrays | None = None,
    ) -> None:
        """Stores values and arrays, in place of what this key had; not what exceeds the limit."""
        path, arrays = self._path(kind, key), arrays or {}
        if not self._writable or sum(array.nbytes for array in arrays.values()) > self.limit_bytes:
            return
        try:
            write_entry(path, values, arrays)
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"{self.folder} cannot be written ({cause_of(error)}), so that what is computed "
                "is not kept for later runs; set UNDENSE_CACHE to a folder that can",
                stacklevel=2,
            )
            return
        with contextlib.suppress(FileNotFoundError):  # another process may have cleared it by now
            written = path.stat().st_size
            self._bytes = None if self._bytes is None else self._bytes + written
        if self._bytes is None or self._bytes > self.limit_bytes:
            self._shrink()

    def entries(self) -> list[StoredEntry]:
        """All entries, the least recently used first."""
        return sorted(self._entries(), key=lambda entry: (entry.used, entry.path))

    def clear(self, kind: str | None = None) -> None:
        """Removes all entries, or those of one kind."""
        for entry in self._entries():
            if kind in (None, entry.kind):
                _remove(entry.path)
        self._remove_abandoned()
        self._bytes = None

    def _path(self, kind: str, key: Mapping[str, JSON]) -> Path:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"{kind!r} is no name of a kind")
        text = json.dumps(
            [_FORMAT, kind, dict(key)], sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / kind / f"{name}.safetensors"

    def _entries(self) -> Iterator[StoredEntry]:
        for path in self.folder.glob("*/*.safetensors"):
            if not _NAME.fullmatch(path.stem):
                continue
            with contextlib.suppress(OSError):  # another process may have removed it meanwhile
                found = path.stat()
                yield StoredEntry(path.parent.name, path, found.st_size, found.st_mtime)

    def _shrink(self) -> None:
        """Counts what all processes have stored, and removes the least used beyond the limit."""
        found = self.entries()
        total = sum(entry.bytes for entry in found)
        if total > self.limit_bytes:
            self._remove_abandoned()
            for entry in found[:-1]:  # what was stored last stays
                if total <= _KEPT * self.limit_bytes:
                    break
                _remove(entry.path)
                total -= entry.bytes
        self._bytes = total

    def _remove_abandoned(self) -> None:
        for path in self.folder.glob(f"*/.*{PARTIAL}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


def default_folder() -> Path:
    """`$UNDENSE_CACHE`, else the folder `undense` of the user's cache."""
    from platformdirs import user_cache_path

    named = os.environ.get("UNDENSE_CACHE")
    return Path(named) if named else user_cache_path("undense", appauthor=False)


def _default_limit() -> int:
    text = os.environ.get("UNDENSE_CACHE_LIMIT")
    if not text:
        return _LIMIT_BYTES
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"UNDENSE_CACHE_LIMIT is {text!r}; give a size such as 20GB or 500MiB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
