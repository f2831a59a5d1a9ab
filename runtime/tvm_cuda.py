"""Memory and streams of a GPU, for TVM's virtual machine.

TVM launches on the stream that `tvm_ffi` holds for the calling thread. Its virtual machines take
memory from one pool, for all threads and streams, and hand it on without waiting for the GPU: so
calls are queued one at a time, and a stream that is not that of the call before waits for it.

Copies and streams of TVM were tried on an emulation; torch's side was not run on a GPU.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

from .alignment import ALIGNMENT
from .gpu_tensors import is_on_gpu

_DEFAULT_STREAM = 0
_wait_for = tvm_ffi.get_global_func("runtime.Device_StreamSyncFromTo")


class Turns:
    """Has calls on one device queued one after the other, whatever their threads and streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: int | None = None

    @contextmanager
    def on(self, device: Any, stream: int) -> Iterator[None]:
        """While it lasts, TVM queues what this thread asks for on `stream`."""
        with self._lock, tvm_ffi.use_raw_stream(device, stream):
            if self._last not in (None, stream):
                _wait_for(device, self._last, stream)
            self._last = stream
            yield

    def synchronize(self, device: Any) -> None:
        """Waits for the last call; it has waited for those before."""
        device.sync(_DEFAULT_STREAM if self._last is None else self._last)


TURNS = Turns()
"""Of the first GPU, whose pool of memory all sessions of the process share."""


def stream_of(values: Sequence[Any]) -> int:
    """Torch's current stream if a value is its tensor on the GPU, else the default one."""
    if any(map(is_on_gpu, values)):
        return int(sys.modules["torch"].cuda.current_stream(0).cuda_stream)
    return _DEFAULT_STREAM


class Staging:
    """Memory of a device for arrays of the host: a piece an input, as long as the shape stays.

    What is put in overwrites what was there, so it is for calls whose results have come back to the
    host before the next one begins.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._pieces: dict[int, Any] = {}

    def put(self, number: int, array: NDArray[np.generic]) -> Any:
        """A TVM tensor that holds a copy of the input of that number."""
        piece, dtype = self._pieces.get(number), array.dtype.name
        if piece is None or (tuple(piece.shape), str(piece.dtype)) != (array.shape, dtype):
            piece = tvm.runtime.empty(array.shape, dtype, self._device)
            self._pieces[number] = piece
        piece.copyfrom(np.ascontiguousarray(array).reshape(array.shape))
        return piece


def to_device(value: Any, device: Any) -> Any:
    """A TVM tensor on the memory of a torch tensor that is there, or a copy of an array.

    A tensor whose layout or address generated code does not take is copied on the GPU.
    """
    if not is_on_gpu(value):
        return tvm.runtime.tensor(np.ascontiguousarray(value).reshape(value.shape), device)
    tensor = value.detach().contiguous()
    if tensor.data_ptr() % ALIGNMENT:
        tensor = tensor.clone()
    return tvm.runtime.from_dlpack(tensor)


def to_torch_on_gpu(value: Any, *, copy: bool) -> Any:
    """A torch tensor on the memory of a TVM tensor, or on a copy of it."""
    tensor = sys.modules["torch"].from_dlpack(value)
    return tensor.clone() if copy else tensor
