"""`undense cache`, and the options of the verbs that keep what they compute."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .passes.errors import InputError

if TYPE_CHECKING:
    from .passes.cache import Cache

_ALL = ""


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """`--cache`, `--no-cache` and `--scheduler`, for verbs that fit."""
    _add_folder(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="compute everything, and keep nothing of it"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="fit on the workers of a dask scheduler"
    )


def cache_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `compile` is given for these options.

    Raises:
        InputError: they contradict each other.
    """
    if options.cache and options.no_cache:
        raise InputError("--cache names a folder and --no-cache says to use none; give one of them")
    return {"cache": options.cache or not options.no_cache, "scheduler": options.scheduler}


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb `cache`."""
    _add_folder(parser)
    parser.add_argument(
        "--clear", metavar="KIND", nargs="?", const=_ALL,
        help="remove all entries, or those of one kind",
    )  # fmt: skip


def cache_contents(options: argparse.Namespace) -> dict[str, Any]:
    """Number and size of the entries by kind, after those that `--clear` names are gone.

    Raises:
        InputError: there is no entry of the kind that is to be removed.
    """
    from .passes.cache import Cache

    cache = Cache(options.cache)
    found: dict[str, Any] = {"folder": str(cache.folder), "limit_bytes": cache.limit_bytes}
    if options.clear is not None:
        found["removed"] = _clear(cache, options.clear)
    kinds = _by_kind(cache)
    total = sum(kind["bytes"] for kind in kinds.values())
    return {**found, "bytes": total, "kinds": kinds}


def _clear(cache: Cache, kind: str) -> dict[str, Any]:
    before = _by_kind(cache)
    if kind == _ALL:
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


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", metavar="FOLDER",
        help="where statistics and fits are kept for later runs (default: $UNDENSE_CACHE, else the "
        "user's cache; up to $UNDENSE_CACHE_LIMIT, default 10GiB)",
    )  # fmt: skip
