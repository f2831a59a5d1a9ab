"""The cache: what is stored comes back, damage and full disks cost no result, the oldest go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from undense.passes.cache import Cache, Entry, default_folder
from undense.passes.errors import InputError

DTYPES = [
    np.bool_, np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64,
    ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn,
]  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def _arrays(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=5), max_size=3, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        random = np.random.default_rng(draw(st.integers(0, 99)))
        array = random.integers(-4, 4, shape).astype(draw(st.sampled_from(DTYPES)))
        arrays[name] = array.T if draw(st.booleans()) else array
    return arrays


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def _get(cache: Cache, kind: str, **key: Any) -> Entry:
    found = cache.get(kind, key)
    assert found is not None
    return found


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=3), st.dictionaries(st.text(), JSON), _arrays())
def test_what_is_stored_comes_back(
    key: dict[str, Any], values: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Cache(folder).put("fit", key, values, arrays)
        found = Cache(folder).get("fit", key)
        assert found is not None
        assert found.values == values
        assert list(found.arrays) == list(arrays)
        for name, array in arrays.items():
            got = found.arrays[name]
            assert (got.dtype, got.shape) == (array.dtype, array.shape)
            assert got.tobytes() == array.tobytes()


def test_bytes_of_another_machine_are_stored_as_numbers(cache: Cache) -> None:
    cache.put("fit", {}, {}, {"a": np.arange(3, dtype=">f4")})
    assert _get(cache, "fit").arrays["a"].tolist() == [0, 1, 2]


def test_an_array_may_be_changed_by_who_gets_it(cache: Cache) -> None:
    cache.put("fit", {}, {}, {"a": np.zeros(3)})
    _get(cache, "fit").arrays["a"] += 1
    assert _get(cache, "fit").arrays["a"].tolist() == [0, 0, 0]


def test_keys_and_kinds_are_told_apart(cache: Cache) -> None:
    keys: list[dict[str, Any]] = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"b": 1}, {}]
    for index, key in enumerate(keys):
        cache.put("fit", key, {"index": index})
    cache.put("stats", keys[0], {"index": -1})
    assert [_get(cache, "fit", **key).values["index"] for key in keys] == list(range(len(keys)))
    assert _get(cache, "stats", a=1).values["index"] == -1
    assert cache.get("fit", {"a": 2}) is None


def test_the_order_of_a_key_means_nothing(cache: Cache) -> None:
    cache.put("fit", {"a": 1, "b": {"c": 2, "d": 3}}, {"found": True})
    assert _get(cache, "fit", b={"d": 3, "c": 2}, a=1).values == {"found": True}


def test_what_was_stored_last_counts(cache: Cache) -> None:
    for index in range(2):
        cache.put("fit", {}, {"index": index})
    assert _get(cache, "fit").values == {"index": 1}
    assert len(cache.entries()) == 1


@pytest.mark.parametrize(("kind", "key"), [("../fit", {}), ("", {}), ("fit", {"a": float("nan")})])
def test_a_bad_key_is_a_mistake_of_the_program(cache: Cache, kind: str, key: Any) -> None:
    with pytest.raises(ValueError, match=r"kind|Out of range"):
        cache.put(kind, key, {})
    with pytest.raises(TypeError, match="cannot be stored"):
        cache.put("fit", {}, {}, {"a": np.array([None])})


def _damages(whole: bytes) -> list[bytes]:
    """Every way of cutting a file or turning a bit over, at places in all of its parts."""
    places = range(0, len(whole), max(1, len(whole) // 150))
    cut = [whole[:place] for place in places]
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in places]
    return [*cut, *flipped, whole + b"x"]


def test_a_damaged_entry_is_removed_and_never_given(cache: Cache) -> None:
    cache.put("fit", {}, {"error": 0.5, "text": "a"}, {"a": np.arange(99, dtype=np.float32)})
    path = cache.entries()[0].path
    whole = path.read_bytes()
    for damaged in _damages(whole):
        path.write_bytes(damaged)
        assert cache.get("fit", {}) is None
        assert not path.exists()
    path.write_bytes(whole)
    assert _get(cache, "fit").values["error"] == 0.5


def test_a_file_under_another_name_is_not_taken_for_it(cache: Cache) -> None:
    cache.put("fit", {"a": 1}, {"a": 1})
    first = cache.entries()[0].path
    cache.put("fit", {"a": 2}, {"a": 2})
    (second,) = {entry.path for entry in cache.entries()} - {first}
    second.write_bytes(first.read_bytes())
    assert cache.get("fit", {"a": 2}) is None
    assert _get(cache, "fit", a=1).values == {"a": 1}


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100_000)
    for index in range(8):
        cache.put("fit", {"i": index}, {}, {"a": np.zeros(10_000, np.uint8)})
        os.utime(max(cache.entries(), key=lambda entry: entry.used).path, (index, index))
    _get(cache, "fit", i=0)
    for index in range(8, 12):
        cache.put("fit", {"i": index}, {}, {"a": np.zeros(10_000, np.uint8)})
    kept = {index for index in range(12) if cache.get("fit", {"i": index}) is not None}
    assert {0, 8, 9, 10, 11} <= kept
    assert 1 not in kept
    assert 80_000 < sum(entry.bytes for entry in cache.entries()) <= 100_000


def test_what_exceeds_the_limit_is_not_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=10_000)
    cache.put("fit", {"i": 0}, {}, {"a": np.zeros(5000, np.uint8)})
    cache.put("fit", {"i": 1}, {}, {"a": np.zeros(10_001, np.uint8)})
    assert cache.get("fit", {"i": 1}) is None
    assert cache.get("fit", {"i": 0}) is not None


def test_clear_removes_entries_of_a_kind_and_nothing_else(cache: Cache) -> None:
    cache.put("fit", {}, {})
    cache.put("stats", {}, {})
    other = cache.folder / "tuning.json"
    other.write_text("{}")
    (cache.folder / "fit" / ".abc.partial").write_text("of a process that was killed")
    os.utime(cache.folder / "fit" / ".abc.partial", (0, 0))
    cache.clear("fit")
    assert [entry.kind for entry in cache.entries()] == ["stats"]
    assert list((cache.folder / "fit").iterdir()) == []
    cache.clear()
    assert cache.entries() == []
    assert other.exists()


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match=r"file/cache cannot be written \(.*set UNDENSE_CACHE"):
        cache.put("fit", {}, {})
    with warnings.catch_warnings(action="error"):
        cache.put("fit", {}, {})
        assert cache.get("fit", {}) is None
    assert cache.entries() == []


_FULL = """
import resource, sys, warnings
import numpy as np
from undense.passes.cache import Cache
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
cache = Cache(sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    for index in range(3):
        cache.put("fit", {"i": index}, {}, {"a": np.zeros(10_000)})
assert len(said) == 1, said
"""


def test_a_full_disk_costs_one_warning_and_leaves_nothing(tmp_path: Path) -> None:
    _python(_FULL, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


_WRITER = """
import sys
import numpy as np
from undense.passes.cache import Cache
cache = Cache(sys.argv[1], limit_bytes=200_000)
for turn in range(150):
    key = {"i": turn % 7}
    entry = cache.get("fit", key)
    if entry is not None:
        assert (entry.arrays["a"] == entry.values["i"]).all() and len(entry.arrays["a"]) == 5000
    cache.put("fit", key, {"i": turn % 7}, {"a": np.full(5000, turn % 7, np.float64)})
    if turn % 50 == 49:
        cache.clear()
"""


def test_processes_write_read_and_clear_the_same_entries(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", _WRITER, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said


def _python(script: str, folder: Path) -> None:
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_folder_and_the_limit_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDENSE_CACHE", str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named"
    monkeypatch.delenv("UNDENSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "undense"
    sizes = {"20GB": 20 * 10**9, "1.5 MiB": 3 * 2**19, "7": 7}
    for text, size in sizes.items():
        monkeypatch.setenv("UNDENSE_CACHE_LIMIT", text)
        assert Cache().limit_bytes == size
    monkeypatch.setenv("UNDENSE_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="UNDENSE_CACHE_LIMIT is 'much'; give a size"):
        Cache()


_MANY = """
import resource, sys
import numpy as np
from undense.passes.cache import Cache

resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
cache = Cache(sys.argv[1])
for number in range(200):
    cache.put("kind", {"number": number}, {}, {"array": np.full(8, number)})
entries = [cache.get("kind", {"number": number}) for number in range(200)]
assert all((entry.arrays["array"] == number).all() for number, entry in enumerate(entries))
"""


def test_more_entries_are_held_than_a_process_may_usually_open_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", _MANY, str(tmp_path)], check=True)
