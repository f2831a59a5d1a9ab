"""Torch tensors on a GPU: they are checked like arrays, without a copy of what they hold."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..passes.errors import InputError
from .arrays import numpy_dtype
from .manifest import TensorInfo
from .signature import Checkable, check
from .tensors import is_torch


def is_on_gpu(value: Any) -> bool:
    """Whether `value` is a torch tensor in the memory of a CUDA device."""
    return is_torch(value) and value.device.type == "cuda"


class DeviceTensor(Checkable):
    """A torch tensor on a GPU, as `signature.check` sees it: it stays where it is."""

    def __init__(self, name: str, tensor: Any) -> None:
        if tensor.device.index:
            raise InputError(
                f"{name}: is on {tensor.device}, the module runs on cuda:0: "
                f"pass {name}.to('cuda:0')"
            )
        try:
            self.dtype = element_type(tensor)
        except TypeError as error:
            raise InputError(f"{name}: {tensor.dtype} has no numpy form ({error})") from error
        self.shape = tuple(tensor.shape)
        self._tensor = tensor

    def extremes(self) -> tuple[int, int]:
        """The lowest and highest entry: two numbers are copied, when the GPU has come to them."""
        low, high = sys.modules["torch"].stack(self._tensor.aminmax()).tolist()
        return int(low), int(high)


def checked(
    inputs: Sequence[TensorInfo],
    dimension_bounds: Mapping[str, tuple[int, int]],
    values: Mapping[str, Any],
    *,
    check_indices: bool = True,
) -> list[Any]:
    """The inputs of a call in order: tensors on the GPU as they are, everything else as arrays.

    Args:
        inputs: of the module.
        dimension_bounds: of its symbols.
        values: by name.
        check_indices: whether the entries of index tensors on the GPU are looked at.

    Raises:
        InputError: what `signature.check` refuses, or a tensor on another GPU than the first.
    """
    seen = {
        info.name: DeviceTensor(info.name, value) if is_on_gpu(value) else value
        for info in inputs
        for value in (values[info.name],)
    }
    arrays = check(inputs, dimension_bounds, seen, check_device_indices=check_indices)
    return [
        value if is_on_gpu(value) else arrays[info.name]
        for info in inputs
        for value in (values[info.name],)
    ]


def element_type(tensor: Any) -> np.dtype[Any]:
    """The numpy type of a torch tensor's elements.

    Raises:
        TypeError: numpy has none.
    """
    return numpy_dtype(str(tensor.dtype).removeprefix("torch."))
