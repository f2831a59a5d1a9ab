"""`.npz` files repeat byte for byte, and bad ones are refused by name."""

from __future__ import annotations

import os

import numpy as np
import pytest
from undense.passes.errors import InputError
from undense.runtime.arrays import read_npz, write_npz

ARRAYS = {
    "0/b": np.arange(6, dtype=np.float16).reshape(2, 3),
    "file": np.array(True),
    "a": np.zeros((0, 3), np.int64),
}


def test_round_trip_and_same_bytes(tmp_path):
    write_npz(tmp_path / "one.npz", ARRAYS)
    write_npz(tmp_path / "two.data", dict(reversed(ARRAYS.items())))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.data").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.npz", "two.data"]
    read = read_npz(tmp_path / "one.npz")
    assert list(read) == sorted(ARRAYS)
    for name, value in ARRAYS.items():
        assert read[name].dtype == value.dtype
        assert np.array_equal(read[name], value)
    with np.load(tmp_path / "one.npz") as plain:
        assert set(plain.files) == set(ARRAYS)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"out\.npz cannot be written"):
        write_npz(tmp_path / "nowhere" / "out.npz", ARRAYS)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "out.npz", {"a": np.array([object()])})
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"absent\.npz cannot be read"):
        read_npz(tmp_path / "absent.npz")
    for name, content in {"text": b"hello", "empty": b"", "zip": b"PK\x03\x04broken"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read as .npz"):
            read_npz(tmp_path / name)
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(InputError, match="an array without a name"):
        read_npz(tmp_path / "single.npy")
    np.savez(tmp_path / "pickled.npz", a=np.array([object()]))
    with pytest.raises(InputError, match=r"pickled\.npz cannot be read"):
        read_npz(tmp_path / "pickled.npz")
    write_npz(tmp_path / "cut.npz", {"a": np.ones(1000)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.npz cannot be read"):
        read_npz(tmp_path / "cut.npz")


def test_bfloat16_is_stored_as_float32_and_declared_again(tmp_path):
    import ml_dtypes
    from undense.runtime.arrays import as_declared
    from undense.runtime.manifest import TensorInfo

    given = {"x": np.array([0.1, -3e38, np.inf], ml_dtypes.bfloat16), "ids": np.arange(3)}
    write_npz(tmp_path / "a.npz", given)
    stored = read_npz(tmp_path / "a.npz")
    assert stored["x"].dtype == np.float32
    infos = [TensorInfo("x", "bfloat16", (3,)), TensorInfo("ids", "int64", (3,))]
    found = as_declared(stored, infos)
    assert found["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["x"], given["x"])
    assert found["ids"] is stored["ids"]
