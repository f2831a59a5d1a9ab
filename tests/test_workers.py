"""Workers of a dask scheduler: the bytes of this machine, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fits import failing_job, fitted_bytes, jobs_of_all_schemes, small_job
from undense.passes.cache import Cache
from undense.passes.errors import FitError, MissingDependencyError, SchedulerError
from undense.passes.workers import cluster_workers

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as found:
        yield found


def test_a_cluster_gives_the_bytes_of_this_process(cluster: Any) -> None:
    here = fitted_bytes(jobs_of_all_schemes())
    with cluster_workers(cluster.scheduler_address) as workers:
        assert workers.in_flight == 4
        jobs = jobs_of_all_schemes()
        found = fitted_bytes(jobs, executor=workers.executor, in_flight=4)
    assert found == here


def test_a_killed_worker_loses_no_result(cluster: Any, tmp_path: Path) -> None:
    jobs = [failing_job(f"slow {index}", index) for index in range(12)]
    here = fitted_bytes(jobs)
    killed: list[int] = []

    def kill(done: int, total: int, text: str) -> None:
        if not killed and 0 < done < total:
            with cluster.get_client() as client:
                killed.extend(client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    with cluster_workers(cluster.scheduler_address) as workers:
        found = fitted_bytes(
            jobs, executor=workers.executor, in_flight=4, cache=Cache(tmp_path), progress=kill
        )
    assert killed
    assert found == here
    assert len(Cache(tmp_path).entries()) == len(jobs)


def test_an_error_on_a_worker_names_the_site(cluster: Any) -> None:
    jobs = [failing_job("wrong", 1)]
    with (
        cluster_workers(cluster.scheduler_address) as workers,
        pytest.raises(FitError, match=r"^wrong: its rank is odd; choose another one$"),
    ):
        fitted_bytes(jobs, executor=workers.executor)


def test_an_address_where_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("undense.passes.workers._ANSWER_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(SchedulerError, match=f"scheduler {address}: it does not answer"),
            cluster_workers(address),
        ):
            pass
    with (
        pytest.raises(SchedulerError, match="scheduler nonsense://x: "),
        cluster_workers("nonsense://x"),
    ):
        pass


def test_a_scheduler_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("undense.passes.workers._ANSWER_SECONDS", 1)
    with (
        distributed.LocalCluster(n_workers=0, processes=True, dashboard_address=None) as empty,
        pytest.raises(SchedulerError, match="it has no workers; start some by `dask worker"),
        cluster_workers(empty.scheduler_address),
    ):
        pass


def test_without_dask_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install 'undense\[cluster\]'"),
        cluster_workers("tcp://127.0.0.1:8786"),
    ):
        pass


def test_a_job_can_be_sent() -> None:
    import pickle

    job = small_job()
    sent = pickle.loads(pickle.dumps(job))
    assert sent.key() == job.key()
    assert sent.site == job.site
