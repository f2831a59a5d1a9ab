"""Torch tensors on a GPU: they are checked like arrays, without a copy of what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..passes.errors import InputError
from .manifest import TensorInfo
from .tensors import is_torch


def is_on_gpu(value: Any) -> bool:
    """Whether `value` is a torch tensor in the memory of a CUDA device."""
    return is_torch(value) and value.device.type == "cuda"


def stand_in(info: TensorInfo, value: Any) -> Any:
    """What `signature.check` can look at in place of `value`, which is copied only for its values.

    A tensor of indices has its values checked and is copied to the host; any other tensor on the
    GPU is stood for by an array of its type and shape that has no memory. Other values are
    returned as they are.

    Raises:
        InputError: a tensor on another GPU than the first, or of a type that numpy does not know.
    """
    if not is_on_gpu(value):
        return value
    if value.device.index:
        raise InputError(
            f"{info.name}: is on {value.device}, the module runs on cuda:0: "
            f"pass {info.name}.to('cuda:0')"
        )
    if info.bounds is not None:
        return value.cpu()
    try:
        dtype = element_type(value)
    except TypeError as error:
        raise InputError(f"{info.name}: {value.dtype} has no numpy form ({error})") from error
    return np.broadcast_to(np.empty((), dtype), tuple(value.shape))


def element_type(tensor: Any) -> np.dtype[Any]:
    """The numpy type of a torch tensor's elements.

    Raises:
        TypeError: numpy has none.
    """
    return np.dtype(str(tensor.dtype).removeprefix("torch."))
