"""Bounds the memory that TVM keeps after a call, for the calls to come.

Its virtual machines share one pool for all of a process. It gives out again only what has exactly
the wanted size, and never lets go: lengths that are ever new, of texts or of a KV cache that grows,
would fill the memory of the machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm_ffi

_KEPT_BYTES = 256 * 2**20
"""By which calls of new sizes have enlarged the process when the next one finds it emptied."""
_KEPT_SIZES = 4096
"""The most sizes of calls that are remembered; also where the process cannot be measured."""

_STATM = Path("/proc/self/statm")
_release = tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")


class Pool:
    """Counts what calls of new sizes add to the process, and empties TVM's pool where it is enough.

    What tensors hold is not touched. Sessions and threads may share one.
    """

    def __init__(
        self,
        kept_bytes: int = _KEPT_BYTES,
        *,
        release: Callable[[], None] = _release,
        resident: Callable[[], int] | None = None,
    ) -> None:
        """Knows of no call yet.

        Args:
            kept_bytes: by which calls may have enlarged the process before one of new sizes, for
                which the pool is emptied otherwise.
            release: empties the pool.
            resident: the bytes of the process.
        """
        self._kept_bytes, self._release = kept_bytes, release
        self._resident = resident or resident_bytes
        self._lock = threading.RLock()  # a session may be collected within it
        self._sizes: set[int] = set()
        self._grown = 0

    @contextmanager
    def call(self, sizes: Hashable) -> Iterator[None]:
        """A call with inputs of these sizes; all of the same sizes take the same memory."""
        known = hash(sizes)
        if known in self._sizes:
            yield
            return
        # Not behind the call that fills it: the next one may well be of the same sizes.
        if self._grown > self._kept_bytes or len(self._sizes) >= _KEPT_SIZES:
            self.empty()
        before = self._resident()
        yield
        with self._lock:
            self._sizes.add(known)
            self._grown += max(self._resident() - before, 0)

    def empty(self) -> None:
        """Gives free memory back, and forgets what calls were made."""
        with self._lock:
            self._release()
            self._sizes.clear()
            self._grown = 0


def resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


POOL = Pool()
"""Of all sessions on CPUs."""
