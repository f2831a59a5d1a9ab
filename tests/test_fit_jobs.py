"""Fits as jobs: the same bytes wherever they run, kept as soon as they are done, errors named."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from fits import SCHEMES, failing_job, fitted_bytes, jobs_of_all_schemes, small_job
from graphs import graph, normal
from undense.passes import fit_jobs, workers
from undense.passes.cache import Cache
from undense.passes.errors import FitError, SchedulerError
from undense.passes.fit import factor_type
from undense.passes.fit_jobs import FitJob, Work, fit_all, fit_cost, naming_site, run
from undense.passes.sites import find_sites
from undense.passes.structures.base import Form
from undense.passes.structures.low_rank import LowRank
from undense.passes.workers import Workers, local_workers


@contextmanager
def _threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


@contextmanager
def _processes() -> Iterator[Executor]:
    with local_workers(1e15, 2) as found:
        assert found.executor is not None
        yield found.executor


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("workers_of", [_threads, _processes])
def test_every_executor_gives_the_bytes_of_this_process(workers_of: Callable[[], Any]) -> None:
    here = fitted_bytes(jobs_of_all_schemes())
    with workers_of() as executor:
        assert fitted_bytes(jobs_of_all_schemes(), executor=executor, in_flight=4) == here


@pytest.mark.usefixtures("two_cores")
def test_large_arrays_go_through_files_that_are_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "_MAPPED_BYTES", 10_000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    written = []
    save = np.save
    monkeypatch.setattr(np, "save", lambda file, array: (written.append(array), save(file, array)))
    here = fitted_bytes(jobs_of_all_schemes())
    with _processes() as executor:
        assert fitted_bytes(jobs_of_all_schemes(), executor=executor, in_flight=3) == here
        assert {array.nbytes for array in written} == {4 * 192 * 128, 8 * 128 * 128}
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["fast", "cuda", "portable"])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
def test_a_result_is_the_same_from_the_cache(
    tmp_path: Path, form: Form, dtype: ir.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    exact = [scheme.replace("group=32", "group=32,activations=float") for scheme in SCHEMES]
    jobs = [replace(small_job(scheme, scheme, form=form), dtype=dtype) for scheme in exact]
    fresh = fitted_bytes(jobs)
    assert fitted_bytes(jobs, cache=cache) == fresh
    monkeypatch.setattr(fit_jobs, "run", _no_run)
    assert fitted_bytes(jobs, cache=cache) == fresh


def _no_run(job: FitJob) -> Any:
    raise AssertionError(f"{job.site} was fitted again")


def test_the_key_holds_all_that_a_fit_follows_from() -> None:
    job = small_job()
    stats = job.stats
    assert stats is not None
    moved = job.weight.copy()
    moved[0, 0] = np.nextafter(moved[0, 0], np.float32(9))
    others = [
        replace(job, weight=moved),
        replace(job, weight=job.weight.reshape(64, 96)),
        replace(job, stats=None),
        replace(job, stats=replace(stats, tokens=stats.tokens + 1)),
        replace(job, stats=replace(stats, mean=stats.mean + 1)),
        replace(job, stats=replace(stats, second_moment=stats.second_moment * 2)),
        replace(job, structure=LowRank(rank=9)),
        replace(job, seed=1),
        replace(job, form="cuda"),
        replace(job, dtype=ir.DataType.FLOAT16),
        replace(job, code={**job.code, "numpy": "1.0"}),
    ]
    keys = [str(sorted(other.key().items())) for other in [job, *others]]
    assert len(set(keys)) == len(keys)
    assert replace(job, site="another name").key() == job.key()


@pytest.mark.parametrize(
    "scheme", ["int_codes{bits=4", "trit_planes{planes=2", "int_codes{bits=3,fit=nearest"]
)
def test_weights_are_those_of_every_kind_of_activations(scheme: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    schemes = [f"{scheme},activations={name}}}" for name in ("float", "int8")]
    schemes += [f"{one}+residual{{rank=2}}" for one in schemes]
    jobs = [small_job(text, text) for text in schemes]
    found = fitted_bytes(jobs)
    assert fitted_bytes(jobs, cache=cache) == found
    assert len(cache.entries()) == 2
    assert [kept[-1] for kept in found.values()] == [str(job.structure) for job in jobs]
    for exact, rounded in ((0, 1), (2, 3)):
        assert found[schemes[exact]][:-1] == found[schemes[rounded]][:-1]


def test_equal_weights_are_fitted_once(tmp_path: Path) -> None:
    found = fitted_bytes([small_job(site="a"), small_job(site="b")], cache=Cache(tmp_path))
    assert found["a"] == found["b"]
    assert len(Cache(tmp_path).entries()) == 1


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(1)])
@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("wrong", "^wrong: its rank is odd; choose another one$"),
        ("broken", "^broken: its fit failed: ZeroDivisionError: a mistake; choose another"),
    ],
)
def test_a_failing_job_names_its_site_and_cancels_the_rest(
    executor: Executor | None, site: str, said: str, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    names = ["first", site, "slow", *(f"slow {index}" for index in range(4))]
    jobs = [failing_job(name, weight) for weight, name in enumerate(names)]
    with pytest.raises(FitError, match=said):
        fitted_bytes(jobs, executor=executor, in_flight=len(jobs), cache=cache)
    assert cache.get("fit", jobs[0].key()) is not None
    assert cache.get("fit", jobs[-1].key()) is None


@pytest.mark.parametrize(
    "error", [CancelledError("lost"), RuntimeError("Error during deserialization of the graph")]
)
def test_what_a_cluster_fails_at_is_not_blamed_on_the_scheme(error: Exception) -> None:
    with pytest.raises(SchedulerError, match=r"^up: the cluster did not fit it"), naming_site("up"):
        raise error


def test_an_error_of_a_fit_can_be_sent() -> None:
    error = pickle.loads(pickle.dumps(FitError("site", "its cause", "a remedy")))
    assert (str(error), error.site, error.cause, error.remedy) == (
        "site: its cause; a remedy", "site", "its cause", "a remedy",
    )  # fmt: skip


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(2)])
def test_what_is_done_is_kept_when_it_is_left_early(
    executor: Executor | None, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    jobs = [small_job(site=str(index), weight=index) for index in range(6)]
    with closing(
        fit_all(jobs, work=Work(1e9), executor=executor, in_flight=6, cache=cache)
    ) as found:
        next(found)
        if executor is not None:
            done = threading.Event()
            executor.submit(done.set)
            done.wait(60)
            time.sleep(0.2)
    expected = 1 if executor is None else len(jobs)
    assert len(cache.entries()) == expected


def test_a_worker_of_another_version_is_refused() -> None:
    job = small_job()
    with pytest.raises(FitError, match="layer: the worker has other numpy than the process"):
        run(replace(job, code={**job.code, "numpy": "1.0"}))


@pytest.mark.usefixtures("two_cores")
def test_few_small_jobs_stay_in_this_process() -> None:
    with local_workers(1e6, 5) as found:
        assert found == Workers()
    with local_workers(1e15, 1) as found:
        assert found == Workers()


def test_a_fit_leaves_the_number_of_threads_as_it_was() -> None:
    import threadpoolctl
    import torch

    before = torch.get_num_threads(), threadpoolctl.threadpool_info()
    run(small_job())
    assert (torch.get_num_threads(), threadpoolctl.threadpool_info()) == before


def test_progress_counts_the_work_that_the_cache_did_not_save(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    small, large = small_job(site="small"), small_job(site="large", shape=(512, 64))
    fitted_bytes([small], cache=cache)
    told: list[tuple[int, int, str]] = []
    fitted_bytes([small, large], cache=cache, progress=lambda *step: told.append(step))
    assert told[0] == (0, int(small.cost + large.cost), "fit")
    assert told[1] == (0, int(large.cost), "fit")
    assert told[-1] == (1, 1, "fit")
    assert all(0 <= done <= total for done, total, _ in told)


def test_cost_follows_the_work() -> None:
    wide, tall = fit_cost(64, 4096, calibrated=True), fit_cost(4096, 64, calibrated=True)
    assert wide > 5 * tall, "statistics have in_features squared entries"
    assert fit_cost(64, 4096, calibrated=False) == fit_cost(4096, 64, calibrated=False)
    assert fit_cost(1024, 1024, calibrated=True) > 4 * fit_cost(512, 512, calibrated=True)


def test_types_of_factors_come_back() -> None:
    found = run(small_job(dtype=ir.DataType.BFLOAT16, form="cuda"))
    assert {array.dtype for array in found.arrays.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_types_of_factors_are_those_that_the_model_is_converted_to() -> None:
    (site,) = find_sites(
        graph("g (float[t,64] x) => (float[t,32] y) { y = MatMul(x, w) }", w=normal(64, 32))
    )[0]
    assert factor_type(site, "cuda") == ir.DataType.FLOAT
    assert factor_type(site, "cuda", ir.DataType.FLOAT16) == ir.DataType.FLOAT16
    assert factor_type(site, "fast", ir.DataType.FLOAT16) == ir.DataType.FLOAT
