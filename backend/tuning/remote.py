"""Servers of TVM's RPC tracker as devices: code is made here, and sent there to be timed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tvm import rpc

from ...passes.errors import InputError, TuningError, UndenseError, cause_of
from .device import Device

_PATIENCE = 15.0
"""Seconds for the tracker to answer, and to lend a server that it called free."""

_LOOKS, _BETWEEN = 10, 0.5
"""How often the tracker is asked for a free server, and the seconds in between."""

_FLUSHED = 256 * 2**20
"""Bytes that are copied before each call on a GPU; no cache holds as much."""

_COLD = 32
"""Calls of a sample on a GPU at most, since each of them waits for that copy."""


class RemoteDevice(Device):
    """A server that runs what it is sent, for one session."""

    def __init__(self, session: Any, folder: Path, threads: int | None) -> None:
        self._session = session
        self._folder = folder
        self._numbers = itertools.count()
        if threads is not None:
            session.get_function("runtime.config_threadpool")(1, threads)
        self._threads = int(session.get_function("runtime.NumThreads")())

    @property
    def processor(self) -> Any:
        """The CPU of the server."""
        return self._session.cpu(0)

    @property
    def name(self) -> str:
        """Servers do not tell it."""
        return ""

    @property
    def threads(self) -> int:
        """Those of the server's pool."""
        return self._threads

    def load(self, compiled: Any) -> Any:
        """The functions out of a library that is sent there."""
        path = self._folder / f"{id(self)}_{next(self._numbers)}.so"
        compiled.export_library(str(path))
        try:
            self._session.upload(bytearray(path.read_bytes()), path.name)
            return self._session.load_module(path.name)
        finally:
            self._session.remove(path.name)
            path.unlink()


class RemoteGpu(RemoteDevice):
    """The first GPU of a server."""

    @property
    def processor(self) -> Any:
        """That GPU."""
        return self._session.cuda(0)

    @property
    def name(self) -> str:
        """As its driver tells it."""
        return str(self.processor.device_name)

    def seconds(self, module: Any, name: str, tensors: Sequence[Any], calls: int) -> float:
        """Of one call that finds none of its inputs in the cache."""
        timer = module.time_evaluator(
            name, self.processor, number=1, repeat=min(calls, _COLD), cache_flush_bytes=_FLUSHED
        )
        return float(timer(*tensors).median)


@contextlib.contextmanager
def remote_devices(
    tracker: str, key: str, threads: int | None, kind: type[RemoteDevice] = RemoteDevice
) -> Iterator[list[Device]]:
    """Every server that the tracker has free for a key; they go back to it at the end.

    Args:
        tracker: `HOST:PORT`.
        key: that the servers were started with.
        threads: that a kernel uses there; None is what each server is set to.
        kind: of device that the servers have.

    Raises:
        InputError: `tracker` is no address.
        TuningError: the tracker cannot be reached, has no free server for the key, or a server
            failed; says which.
    """
    host, port = _address(tracker)
    _check_reachable(tracker, host, port)
    try:
        found = rpc.connect_tracker(host, port)
        devices: list[Device] = []
        free = _free(found, tracker, key)
        with tempfile.TemporaryDirectory(prefix="undense-tune-") as folder:
            for _ in range(free):
                session = _lent(found, tracker, key)
                devices.append(kind(session, Path(folder), threads))
                del session
            try:
                yield devices
            finally:
                # A server goes back when nothing refers to its session.
                devices.clear()
                gc.collect()
    except UndenseError:
        raise
    except Exception as error:  # the FFI raises what it likes
        raise TuningError(
            f"measuring on the servers for {key!r} of tracker {tracker} failed "
            f"({cause_of(error)}); see what the servers say"
        ) from error


def _address(tracker: str) -> tuple[str, int]:
    host, colon, port = tracker.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise InputError(f"tracker {tracker!r}: give HOST:PORT, such as 127.0.0.1:9190")
    return host, int(port)


def _check_reachable(tracker: str, host: str, port: int) -> None:
    """Once, and at once: TVM's own client tries for a minute."""
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        raise TuningError(
            f"tracker {tracker} cannot be reached ({cause_of(error)}); start it with "
            "python -m tvm.exec.rpc_tracker"
        ) from error


def _free(session: Any, tracker: str, key: str) -> int:
    """How many servers are free; waits a little, since one needs a moment between two users."""
    for _ in range(_LOOKS):
        queues = session.summary()["queue_info"]
        free = int(queues.get(key, {}).get("free", 0))
        if free:
            return free
        if key not in queues:
            break
        time.sleep(_BETWEEN)
    if key in queues:
        raise TuningError(f"tracker {tracker}: all servers for {key!r} are taken; try again later")
    known = ", ".join(sorted(queues)) or "no other"
    raise TuningError(
        f"tracker {tracker} has no server for {key!r} ({known}); start one on such a processor "
        f"with python -m tvm.exec.rpc_server --tracker {tracker} --key {key}"
    )


def _lent(tracker_session: Any, tracker: str, key: str) -> Any:
    """A session on a free server; a request for one that is gone by now would wait for ever."""
    lent: list[Any] = []
    request = threading.Thread(
        target=lambda: lent.append(tracker_session.request(key, max_retry=1)), daemon=True
    )
    request.start()
    request.join(_PATIENCE)
    if not lent:
        raise TuningError(
            f"tracker {tracker}: a server for {key!r} was free and does not answer; try again, or "
            "start it anew"
        )
    return lent[0]
