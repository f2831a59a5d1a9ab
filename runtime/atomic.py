"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """A new folder on the file system of `target`; made with the user's permissions."""
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`; what stood there is deleted, or back again if that fails."""
    if not target.exists():
        folder.rename(target)
        return
    previous = folder.with_suffix(".previous")
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
