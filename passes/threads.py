"""One thread in BLAS, LAPACK and torch, so that sums are added in the same order everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

_lock = threading.Lock()
_inside = 0
_restore = ExitStack()


@contextmanager
def single_threaded(*, with_torch: bool) -> Iterator[None]:
    """Holds numerical libraries to one thread while this lasts, in several threads at a time.

    The limits belong to the process, so that the first to enter sets and the last to leave restores
    them.

    Args:
        with_torch: torch will be used, and is loaded now: its limit cannot be set beforehand.
    """
    global _inside
    torch = _torch() if with_torch else None
    with _lock:
        if _inside == 0:
            _limit()
        if torch is not None:
            _limit_torch(torch)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore.close()


def _limit() -> None:
    from threadpoolctl import threadpool_limits

    _restore.enter_context(threadpool_limits(1))


def _limit_torch(torch: ModuleType) -> None:
    """In each thread anew: OpenMP keeps a limit for each."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
        _restore.callback(torch.set_num_threads, before)


def _torch() -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    return torch
