"""Tensors on a GPU are checked like arrays, and nothing of them is copied but two indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from undense.passes.errors import InputError
from undense.runtime.gpu_tensors import DeviceTensor, checked, element_type, is_on_gpu
from undense.runtime.manifest import TensorInfo

X = TensorInfo("x", "float32", ("n", 4))
IDS = TensorInfo("ids", "int64", ("n",), bounds=(0, 9))


class _OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and notes what of it is copied to the host."""

    number = 0
    copied: list[int] = []  # noqa: RUF012  # of numbers

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.number)

    def tolist(self) -> Any:
        _OnGpu.copied.append(self.numel())
        return self.as_subclass(torch.Tensor).tolist()

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        raise AssertionError("a tensor was copied to the host")

    numpy = cpu


@pytest.fixture(autouse=True)
def _nothing_copied() -> None:
    _OnGpu.copied.clear()


def on_gpu(tensor: torch.Tensor) -> Any:
    return tensor.as_subclass(_OnGpu)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.int64, torch.uint8, torch.bool]
)
def test_element_types(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, dtype=dtype)
    assert element_type(tensor) == tensor.numpy().dtype


def test_bfloat16_has_a_type() -> None:
    assert element_type(torch.zeros(2, dtype=torch.bfloat16)).name == "bfloat16"


def test_floats_are_checked_without_a_copy() -> None:
    x = on_gpu(torch.ones(3, 4))
    assert is_on_gpu(x)
    (found,) = checked([X], {}, {"x": x})
    assert found is x
    for wrong, message in [
        (on_gpu(torch.ones(3, 5)), r"x: expected shape \[n, 4\], got \[3, 5\]"),
        (on_gpu(torch.ones(3, 4).double()), "x: expected dtype float32, got float64"),
    ]:
        with pytest.raises(InputError, match=message):
            checked([X], {}, {"x": wrong})
    assert _OnGpu.copied == []


def test_two_indices_are_copied() -> None:
    ids = on_gpu(torch.tensor([3, 9, 0]))
    (found,) = checked([IDS], {}, {"ids": ids})
    assert found is ids
    assert _OnGpu.copied == [2]
    with pytest.raises(InputError, match="ids: expected indices from 0 to 9, got 10"):
        checked([IDS], {}, {"ids": on_gpu(torch.tensor([3, 10]))})


def test_no_index_is_copied_if_the_caller_has_checked_them() -> None:
    ids = on_gpu(torch.tensor([3, 10]))
    assert checked([IDS], {}, {"ids": ids}, check_indices=False) == [ids]
    assert _OnGpu.copied == []
    with pytest.raises(InputError, match="got 10"):  # of an array they still are
        checked([IDS], {}, {"ids": np.array([3, 10])}, check_indices=False)


def test_symbols_hold_between_a_tensor_on_a_gpu_and_an_array() -> None:
    x, ids = on_gpu(torch.ones(3, 4)), np.array([1, 2, 3])
    found = checked([X, IDS], {"n": (1, 4)}, {"x": x, "ids": ids})
    assert found[0] is x
    assert found[1] is ids
    with pytest.raises(InputError, match="n is 3 in x"):
        checked([X, IDS], {}, {"x": x, "ids": ids[:2]})


def test_other_gpus_are_refused() -> None:
    tensor = on_gpu(torch.ones(2, 4))
    tensor.number = 1
    with pytest.raises(InputError, match=r"x: is on cuda:1, the module runs on cuda:0"):
        DeviceTensor("x", tensor)


def test_types_that_numpy_lacks_are_refused() -> None:
    with pytest.raises(InputError, match=r"x: torch\.bits8 has no numpy form"):
        DeviceTensor("x", on_gpu(torch.empty(2, dtype=torch.bits8)))
