"""Where fits run: in this process, in processes of this machine, or on the workers of a cluster."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import FitError, MissingDependencyError, SchedulerError, cause_of
from .fingerprint import code_fingerprint

_WORTH_PROCESSES = 2.5e10
"""Multiply-accumulates, about ten seconds of one core: each process takes three to load torch."""
_MAPPED_BYTES = 64 * 2**20
"""Arrays from this size on go through a file that is mapped, and not through a pipe."""
_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Workers:
    """An executor, or None to work here and now, and how many jobs it is given at a time."""

    executor: Executor | None = None
    in_flight: int = 1


@contextmanager
def local_workers(cost: float, jobs: int) -> Iterator[Workers]:
    """A process a core, or none where starting them would take longer than the work.

    They are loky's: those of the standard library run the main script of the user once more, and
    copies of a process in which torch and ONNX Runtime have threads hang.

    Args:
        cost: of all jobs in multiply-accumulates.
        jobs: their number.
    """
    import loky

    count = min(jobs, loky.cpu_count())
    if count < 2 or cost < _WORTH_PROCESSES:
        yield Workers()
        return
    with tempfile.TemporaryDirectory(prefix="undense-") as folder:

        class Processes(loky.ProcessPoolExecutor):  # type: ignore[misc]
            """Ended with all they have: in a shutdown loky fails on futures that are cancelled."""

            def submit(self, *job: Any, **options: Any) -> Future[Any]:
                future: Future[Any] = super().submit(*job, **options)
                future.cancel = lambda: False  # type: ignore[method-assign]
                return future

        executor = Processes(
            count,
            initializer=_begin,
            initargs=(os.getpid(),),
            job_reducers={np.ndarray: partial(_reduced, folder)},
        )
        try:
            with warnings.catch_warnings():
                # Weights differ in size, which loky takes for a leak; it starts another process.
                warnings.filterwarnings("ignore", "A worker was restarted", UserWarning)
                yield Workers(executor, count + 1)
        finally:
            executor.shutdown(kill_workers=True)


@contextmanager
def cluster_workers(address: str) -> Iterator[Workers]:
    """The workers of a dask scheduler, which has to have undense in the same versions.

    A job whose worker is lost goes to another one.

    Args:
        address: as dask writes it, `tcp://host:8786`.

    Raises:
        MissingDependencyError: dask is not installed.
        SchedulerError: nothing answers there within ten seconds, or it has no workers.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            "a scheduler is reached through dask: pip install 'undense[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SchedulerError(
            f"scheduler {address}: it does not answer ({cause_of(error)}); start one by `dask "
            "scheduler`, or leave the scheduler out to fit on this machine"
        ) from error
    with client, dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        try:
            client.wait_for_workers(1, timeout=_ANSWER_SECONDS)
        except TimeoutError as error:
            raise SchedulerError(
                f"scheduler {address}: it has no workers; start some by `dask worker {address}`"
            ) from error
        threads = sum(client.nthreads().values())
        yield Workers(client.get_executor(), 2 * threads)


def check_code(site: str, code: Mapping[str, str]) -> None:
    """Called where a job runs: refuses other code than that of the process that made the job.

    Args:
        site: that the job is about.
        code: `code_fingerprint()` of who made it.

    Raises:
        FitError: undense, numpy or torch are others here.
    """
    here = code_fingerprint()
    differing = sorted(name for name in {*here, *code} if here.get(name) != code.get(name))
    if differing:
        raise FitError(
            site,
            f"the worker has other {' and '.join(differing)} than the process that compiles",
            "install the same versions on all workers",
        )


def _begin(parent: int) -> None:
    """Has a process end with the one that started it, and not before.

    Ctrl-C is sent to all processes of a terminal; one that is killed tells nobody.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _reduced(folder: str, array: NDArray[Any]) -> tuple[Any, ...]:
    """How pickle sends an array: a large one as the name of a file that its reader removes."""
    if array.nbytes < _MAPPED_BYTES or array.dtype.isbuiltin != 1:
        return cast(tuple[Any, ...], array.__reduce_ex__(5))
    number, name = tempfile.mkstemp(suffix=".npy", dir=folder)
    with os.fdopen(number, "wb") as file:
        np.save(file, array)
    return _mapped, (name,)


def _mapped(name: str) -> NDArray[Any]:
    """The array of a file, which stays mapped when its name is gone."""
    array: NDArray[Any] = np.load(name, mmap_mode="r").view(np.ndarray)
    Path(name).unlink()
    return array
