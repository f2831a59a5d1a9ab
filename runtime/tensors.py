"""What a caller hands in becomes numpy arrays, and results become what the caller handed in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.errors import InputError
from .arrays import numpy_dtype

_SAFE_KINDS = {"b": "b", "i": "iu", "f": "fiu", "V": "fiu"}
"""What numbers may be without loss of kind, by the kind of what they become; V is bfloat16's."""


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(name: str, value: Any, dtype: str) -> NDArray[Any]:
    """`value` as an array, without a copy where there is memory to share.

    Arrays and tensors keep their dtype. Python numbers and lists, which have none, become
    `dtype` where that loses nothing of their kind and range.

    Raises:
        InputError: no array, a tensor on another device, or numbers that do not fit `dtype`.
    """
    if isinstance(value, np.ndarray):
        return value
    if is_torch(value):
        return _of_torch(name, value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, bool | int | float | list | tuple):
        return _of_python(name, value, numpy_dtype(dtype))
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"{name}: cannot be read on the CPU ({error})") from error
    raise InputError(
        f"{name}: expected an array, a tensor or numbers, got {type(value).__name__}; "
        "inputs by name go to run({...}) or as keywords"
    )


def to_torch(array: NDArray[Any]) -> Any:
    """A torch tensor on the memory of `array`, which must be writable."""
    torch = sys.modules["torch"]
    if array.dtype.name == "bfloat16":  # neither knows the other's
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _of_torch(name: str, value: Any) -> NDArray[Any]:
    if value.device.type != "cpu":
        raise InputError(f"{name}: is on {value.device}, the module runs on cpu: pass {name}.cpu()")
    if str(value.dtype) == "torch.bfloat16":
        bits = value.detach().contiguous().view(sys.modules["torch"].int16)
        return bits.numpy().view(numpy_dtype("bfloat16"))  # type: ignore[no-any-return]
    try:
        array: NDArray[Any] = value.numpy(force=True)
    except TypeError as error:
        raise InputError(f"{name}: {value.dtype} has no numpy form ({error})") from error
    return array


def _of_python(name: str, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name}: the lists form no array ({error})") from error
    if array.size == 0:
        return array.astype(dtype)
    wanted = "i" if dtype.kind == "u" else dtype.kind
    if array.dtype.kind not in _SAFE_KINDS[wanted]:
        raise InputError(
            f"{name}: expected numbers that are safe as {dtype}, got {array.dtype}; "
            f"pass a numpy array of dtype {dtype}"
        )
    if wanted == "i":
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise InputError(f"{name}: values from {low} to {high} do not fit {dtype}")
    return array.astype(dtype)
