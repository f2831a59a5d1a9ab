"""TVM's pool of memory stays within bounds, whatever lengths a model is called with."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import undense
from undense.runtime import tvm_session
from undense.runtime.tvm_pool import Pool, resident_bytes

from .graphs import graph, normal

MODEL = """
    g (float[t, 64] x) => (float[t, 4096] y) {
        h = MatMul(x, w)
        y = Relu(h)
    }
"""


class Process:
    """That grows by what a call adds."""

    def __init__(self, kept: int) -> None:
        self.bytes = self.emptied = 0
        self.pool = Pool(kept, release=self.release, resident=lambda: self.bytes)

    def release(self) -> None:
        self.emptied += 1

    def call(self, sizes: object, added: int) -> int:
        with self.pool.call(sizes):
            self.bytes += added
        return self.emptied


def test_the_pool_is_emptied_when_calls_of_new_sizes_have_added_enough():
    process = Process(100)
    assert [process.call(n, 40) for n in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_calls_of_the_same_sizes_are_not_counted():
    process = Process(100)
    assert [process.call("same", 1000) for _ in range(3)] == [0, 0, 0]
    assert [process.call("other", 1000), process.call("same", 1000)] == [1, 2]


def test_a_process_that_shrinks_is_no_gain():
    process = Process(100)
    assert [process.call(n, added) for n, added in enumerate((60, -500, 60, 0))] == [0, 0, 0, 1]


def test_without_measurements_sizes_are_counted():
    pool = Process(100)
    for n in range(4096):
        assert pool.call(n, 0) == 0
    assert pool.call(4096, 0) == 1


def test_a_call_that_fails_is_not_counted():
    process = Process(0)
    with pytest.raises(TypeError):
        process.call("x", None)
    assert process.call("y", 0) == 0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "out"
    undense.compile(graph(MODEL, w=normal(64, 4096)), scheme="dense", target="llvm", output=path)
    return path


def test_a_session_takes_bounded_memory_and_its_outputs_stay(artifact, monkeypatch):
    monkeypatch.setattr(tvm_session, "POOL", Pool(8 * 2**20))
    session = undense.load(artifact)
    first = session(np.ones((300, 64), np.float32))
    kept = first.copy()
    highest = []
    for rows in range(1, 400):  # 1.2 GiB, were all of it kept
        session(np.full((rows, 64), 2, np.float32))
        highest.append(resident_bytes())
    assert max(highest) - highest[0] < 2**29
    np.testing.assert_array_equal(first, kept)


def test_memory_goes_with_its_session(artifact, monkeypatch):
    emptied: list[int] = []
    monkeypatch.setattr(tvm_session, "POOL", Pool(release=lambda: emptied.append(1)))
    session = undense.load(artifact)
    session(np.ones((3, 64), np.float32))
    assert not emptied
    del session
    gc.collect()
    assert emptied


def test_threads_share_it(artifact, monkeypatch):
    monkeypatch.setattr(tvm_session, "POOL", Pool(1))
    session = undense.load(artifact, num_threads=1)
    inputs = [np.full((rows, 64), rows, np.float32) for rows in range(1, 40)]
    want = [session(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for got, expected in zip(threads.map(session, inputs * 4), want * 4, strict=True):
            np.testing.assert_array_equal(got, expected)
