"""What lies in the cache: `undense cache`."""

from __future__ import annotations

from typing import Any

from .cache import Cache
from .errors import InputError


def contents(cache: Cache) -> dict[str, Any]:
    """Folder and limit of the cache, and number and bytes of its entries by kind."""
    kinds = _by_kind(cache)
    return {
        "folder": str(cache.folder),
        "limit_bytes": cache.limit_bytes,
        "bytes": sum(kind["bytes"] for kind in kinds.values()),
        "kinds": kinds,
    }


def remove(cache: Cache, kind: str | None) -> dict[str, dict[str, int]]:
    """Removes all entries, or those of one kind; returns their number and bytes by kind.

    Raises:
        InputError: there is no entry of that kind; names those that there are.
    """
    before = _by_kind(cache)
    if kind is None:
        cache.clear()
        return before
    if kind not in before:
        known = ", ".join(before) or "none"
        raise InputError(f"{cache.folder}: it has no entries of kind {kind!r}; kinds: {known}")
    cache.clear(kind)
    return {kind: before[kind]}


def _by_kind(cache: Cache) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for entry in sorted(cache.entries(), key=lambda entry: entry.kind):
        kind = kinds.setdefault(entry.kind, {"entries": 0, "bytes": 0})
        kind["entries"] += 1
        kind["bytes"] += entry.bytes
    return kinds
