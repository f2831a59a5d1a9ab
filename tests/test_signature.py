"""Calls that do not fit are refused with the input, what was expected and what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from undense.passes.errors import InputError
from undense.runtime.manifest import TensorInfo
from undense.runtime.signature import bind, check

SIGNATURE = (
    TensorInfo("ids", "int64", ("batch", "sequence"), bounds=(0, 99)),
    TensorInfo("mask", "float32", ("batch", "past + sequence")),
    TensorInfo("cache", "float32", ("batch", "past", 4)),
)
BOUNDS = {"sequence": (1, 8), "past + sequence": (1, 10)}


def values(
    batch: int = 2, sequence: int = 3, past: int = 5, **changes: object
) -> dict[str, object]:
    return {
        "ids": np.full((batch, sequence), 7),
        "mask": np.ones((batch, past + sequence), np.float32),
        "cache": np.ones((batch, past, 4), np.float32),
        **changes,
    }


def checked(given: dict[str, Any]) -> dict[str, np.ndarray]:
    return check(SIGNATURE, BOUNDS, given)


def test_by_position_by_name_and_both():
    named = {"cache": 3, "mask": 2, "ids": 1}
    for args, names in (((1, 2, 3), ()), ((), named), ((1,), ("mask", "cache"))):
        bound = bind(SIGNATURE, args, {name: named[name] for name in names})
        assert list(bound.items()) == [("ids", 1), ("mask", 2), ("cache", 3)]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2, 3, 4), {}, "got 4 inputs, the module takes 3: ids, mask, cache"),
        ((1, 2), {"mask": 2, "cache": 3}, "mask: is given twice, by position and by name"),
        ((1, 2), {"cachet": 3}, "cachet: is no input of the module; its inputs are ids, mask"),
        ((1,), {}, "mask, cache: not given; the module takes ids, mask, cache"),
    ],
)
def test_names_that_do_not_fit(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        bind(SIGNATURE, args, kwargs)


@pytest.mark.parametrize("given", [values(), values(past=0), values(batch=0), values(1, 8, 2)])
def test_what_fits_passes_without_a_copy(given):
    arrays = checked(given)
    assert list(arrays) == ["ids", "mask", "cache"]
    assert all(arrays[name] is value for name, value in given.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (values(ids=np.zeros((2, 3), np.int32)), "ids: expected dtype int64, got int32"),
        (values(mask=np.ones((2, 8))), "mask: expected dtype float32, got float64"),
        (values(ids=np.zeros(3, np.int64)), r"ids: expected shape \[batch, sequence\], got \[3\]"),
        (
            values(cache=np.ones((2, 5, 3), np.float32)),
            r"cache: expected shape \[batch, past, 4\], got \[2, 5, 3\]",
        ),
        (
            values(cache=np.ones((1, 5, 4), np.float32)),
            r"cache: expected shape \[batch, past, 4\], got \[1, 5, 4\]; batch is 2 in ids",
        ),
        (
            values(mask=np.ones((2, 7), np.float32)),
            r"mask: .*got \[2, 7\]; past \+ sequence is 8 by the other inputs",
        ),
        (values(sequence=0), "ids: sequence must lie in 1 to 8, got 0"),
        (values(sequence=9, past=1), "ids: sequence must lie in 1 to 8, got 9"),
        (values(sequence=6, past=5), r"past \+ sequence must lie in 1 to 10, got 11"),
        (values(ids=np.full((2, 3), 100)), "ids: expected indices from 0 to 99, got 100"),
        (values(ids=np.full((2, 3), -1)), "ids: expected indices from 0 to 99, got -1"),
        (values(ids="text"), "ids: expected an array, a tensor or numbers, got str"),
        (values(ids=None), "ids: expected an array, a tensor or numbers, got NoneType"),
        (values(ids={"ids": 1}), r"got dict; inputs by name go to run\(\{\.\.\.\}\)"),
        (values(ids=[[1, 2, 3], [1]]), "ids: the lists form no array"),
        (values(ids=[[1.5, 2, 3]]), "ids: expected numbers that are safe as int64, got float64"),
        (values(ids=[[True]]), "ids: expected numbers that are safe as int64, got bool"),
        (values(ids=[["a"]]), "ids: expected numbers that are safe as int64, got <U1"),
        (values(mask=torch.ones(2, 8, dtype=torch.bfloat16)), "mask: expected dtype float32"),
        (values(mask=torch.ones(2, 8, device="meta")), r"mask: is on meta, .* pass mask\.cpu\(\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        checked(given)


def test_python_numbers_become_the_wanted_dtype():
    arrays = checked(values(1, 3, 0, ids=[[1, 2, 99]], mask=[[1, 0, 1]]))
    assert arrays["ids"].dtype == np.int64
    assert arrays["mask"].dtype == np.float32
    assert arrays["mask"].tolist() == [[1.0, 0.0, 1.0]]
    scalar = (TensorInfo("level", "uint8", ()),)
    assert check(scalar, {}, {"level": 255})["level"] == np.uint8(255)
    with pytest.raises(InputError, match="level: values from 256 to 256 do not fit uint8"):
        check(scalar, {}, {"level": 256})
    with pytest.raises(InputError, match="level: values from -1 to -1 do not fit uint8"):
        check(scalar, {}, {"level": -1})
    with pytest.raises(InputError, match="level: expected dtype uint8, got int64"):
        check(scalar, {}, {"level": np.int64(1)})


def test_tensors_share_their_memory():
    cache = torch.ones(2, 5, 4, requires_grad=True)
    assert checked(values(cache=cache))["cache"].ctypes.data == cache.data_ptr()


def test_dimensions_that_are_no_arithmetic_are_plain_symbols():
    signature = (
        TensorInfo("x", "float32", ("batch.1", None)),
        TensorInfo("y", "float32", ("batch.1",)),
    )
    check(signature, {}, {"x": np.ones((2, 9), np.float32), "y": np.ones(2, np.float32)})
    with pytest.raises(InputError, match=r"y: expected shape \[batch\.1\], got \[3\]"):
        check(signature, {}, {"x": np.ones((2, 9), np.float32), "y": np.ones(3, np.float32)})


def test_expressions_run_no_code():
    signature = (TensorInfo("x", "float32", ("n", "__import__('os').getpid() + n")),)
    assert check(signature, {}, {"x": np.ones((1, 1), np.float32)})["x"].shape == (1, 1)


@pytest.mark.parametrize(
    ("text", "length"), [("2*n", 6), ("n//2", 1), ("n - 1", 2), ("(n + 1)*2", 8), ("n + 4", 7)]
)
def test_arithmetic_of_dimensions(text, length):
    signature = (TensorInfo("x", "float32", ("n",)), TensorInfo("y", "float32", (text,)))
    x = np.ones(3, np.float32)
    check(signature, {}, {"x": x, "y": np.ones(length, np.float32)})
    with pytest.raises(InputError, match=f"is {length} by the other inputs"):
        check(signature, {}, {"x": x, "y": np.ones(length + 1, np.float32)})
