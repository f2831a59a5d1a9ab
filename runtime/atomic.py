"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

_PARTIAL, _PREVIOUS = ".partial", ".previous"
_NEW = 60
"""Seconds in which a folder may not be locked yet by who made it."""


@contextlib.contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """A new folder on the file system of `target`; made with the user's permissions.

    Those that killed processes left for the same target go.
    """
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    _clean(target)
    folder = parent / f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}"
    folder.mkdir()
    try:
        with _held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clean(target: Path) -> None:
    """Removes what nobody writes any more, and puts back what was moved away to be replaced."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if left.suffix not in (_PARTIAL, _PREVIOUS):
            continue
        # Another process may clean up too, or take its own away.
        with contextlib.suppress(OSError), _held(left) as held:
            if time.time() - left.stat().st_mtime < _NEW or not held:
                continue
            if left.suffix == _PREVIOUS and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this locks a folder, as long as the process lives: not if another one holds it.

    Nor does it where the file system has no locks.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(number)


def move_into_place(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`; what stood there is deleted, or back again if that fails."""
    if not target.exists():
        folder.rename(target)
        return
    previous = folder.with_suffix(_PREVIOUS)
    with _held(target, wait=True):
        target.rename(previous)
        try:
            folder.rename(target)
        except BaseException:
            previous.rename(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def termination_as_exception() -> Iterator[None]:
    """SIGTERM ends the process through `finally` blocks, if nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
