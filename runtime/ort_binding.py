"""Runs a session of ONNX Runtime on memory of its device: inputs and outputs stay where they are.

The same code serves CPU and GPU; it was tested with CPU tensors, and on no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from .artifact import Device
from .gpu_tensors import element_type, is_on_gpu
from .tensors import is_torch

_FIRST = 0
"""Number of the device."""
_BFLOAT16 = 16
"""What ONNX calls the one type of torch that numpy has no name for."""


def run_bound(
    session: Any, inputs: Mapping[str, Any], outputs: Sequence[str], device: Device
) -> list[Any]:
    """The outputs as `OrtValue`s in memory of `device`, which ONNX Runtime allocates.

    Args:
        session: an `InferenceSession` whose provider is that of `device`.
        inputs: by name; torch tensors on `device` are read in place, arrays are copied to it.
        outputs: names.
        device: the session's.
    """
    binding = session.io_binding()
    held = []  # until the run is over: a binding knows addresses alone
    for name, value in inputs.items():
        if is_torch(value):
            tensor = value.detach().contiguous()
            held.append(tensor)
            half = str(tensor.dtype) == "torch.bfloat16"
            kind = _BFLOAT16 if half else element_type(tensor)
            binding.bind_input(name, device, _FIRST, kind, tuple(tensor.shape), tensor.data_ptr())
        else:
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            copied = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, _FIRST)
            held.append(copied)
            binding.bind_ortvalue_input(name, copied)
    for name in outputs:
        binding.bind_output(name, device, _FIRST)
    if any(map(is_on_gpu, held)):
        # ONNX Runtime has a stream of its own, and torch may still be writing on its.
        sys.modules["torch"].cuda.current_stream().synchronize()
    session.run_with_iobinding(binding)  # returns when its stream has finished
    found: list[Any] = binding.get_outputs()
    return found


def to_torch_without_copy(value: Any) -> Any:
    """A torch tensor on the memory of an `OrtValue`, which it keeps."""
    torch = sys.modules["torch"]
    tensor = torch.from_dlpack(value)
    # ONNX Runtime hands truth values over as bytes.
    return tensor.view(torch.bool) if value.data_type() == "tensor(bool)" else tensor
