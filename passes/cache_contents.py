"""What lies in the cache: `undense cache`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .cache import Cache, StoredEntry
from .errors import InputError


def contents(cache: Cache) -> dict[str, Any]:
    """Folder and limit of the cache, and number and bytes of its entries by kind."""
    kinds = _by_kind(cache.entries())
    return {
        "folder": str(cache.folder),
        "limit_bytes": cache.limit_bytes,
        "bytes": sum(kind["bytes"] for kind in kinds.values()),
        "kinds": kinds,
    }


def remove(cache: Cache, kind: str | None) -> dict[str, dict[str, int]]:
    """Removes all entries, or those of one kind; returns their number and bytes by kind.

    Raises:
        InputError: there is no entry of that kind, and names those that there are; or some cannot
            be removed.
    """
    entries = cache.entries()
    listed = [entry for entry in entries if kind in (None, entry.kind)]
    if kind is not None and not listed:
        known = ", ".join(_by_kind(entries)) or "none"
        raise InputError(f"{cache.folder}: it has no entries of kind {kind!r}; kinds: {known}")
    cache.clear(kind)
    if left := [entry for entry in listed if entry.path.exists()]:
        raise InputError(
            f"{cache.folder}: {len(left)} of {len(listed)} entries cannot be removed; allow "
            "writing there"
        )
    return _by_kind(listed)


def _by_kind(entries: Iterable[StoredEntry]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for entry in sorted(entries, key=lambda entry: entry.kind):
        kind = kinds.setdefault(entry.kind, {"entries": 0, "bytes": 0})
        kind["entries"] += 1
        kind["bytes"] += entry.bytes
    return kinds
