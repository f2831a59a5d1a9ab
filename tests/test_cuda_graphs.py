"""CUDA graphs record what a stream is given, and replay it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator

import numpy as np
import pytest
from cuda_emulation.libraries import runtime_library
from cuda_emulation.raw import CudaError, Kernels

pytestmark = pytest.mark.usefixtures("cuda_device")

KERNELS = r"""
extern "C" __global__ void bounded() {}
extern "C" __global__ void add(float* out, float* in, float summand) {
  out[threadIdx.x] = in[threadIdx.x] + summand;
}
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNELS)


class Stream:
    """A stream of the emulated runtime."""

    def __init__(self) -> None:
        self.runtime = ctypes.CDLL(str(runtime_library()))
        self.handle = ctypes.c_void_p()
        assert self.runtime.cudaStreamCreate(ctypes.byref(self.handle)) == 0

    def begin(self) -> None:
        assert self.runtime.cudaStreamBeginCapture(self.handle, 0) == 0

    def end(self) -> tuple[int, ctypes.c_void_p]:
        """Ends the capture: an error, and the executable graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        error = self.runtime.cudaStreamEndCapture(self.handle, ctypes.byref(graph))
        flags = ctypes.c_ulonglong()
        made = self.runtime.cudaGraphInstantiate(ctypes.byref(executable), graph, flags)
        assert (made == 0) == (error == 0)
        self.runtime.cudaGraphDestroy(graph)
        return error, executable


@pytest.fixture
def stream() -> Iterator[Stream]:
    kernels()  # a module cannot be loaded during a capture
    stream = Stream()
    yield stream
    stream.runtime.cudaStreamDestroy(stream.handle)


def test_a_graph_records_copies_and_launches_with_their_arguments(stream):
    source, (middle, target) = np.zeros(32, np.float32), np.zeros((2, 32), np.float32)
    copy, size, host_to_host = stream.runtime.cudaMemcpyAsync, ctypes.c_size_t(128), 0
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (middle, source)]
    stream.begin()
    assert copy(*pointers, size, host_to_host, stream.handle) == 0
    for summand in (1, 10):
        kernels().launch("add", middle, middle, np.float32(summand), stream=stream.handle)
    kernels().launch("add", target, middle, np.float32(100), stream=stream.handle)
    error, graph = stream.end()
    assert error == 0
    assert not target.any()  # nothing runs during the capture
    for base in (0, 1000):
        source[:] = base + np.arange(32)
        assert stream.runtime.cudaGraphLaunch(graph, None) == 0
        assert (target == base + 111 + np.arange(32)).all()
    assert stream.runtime.cudaGraphExecDestroy(graph) == 0


def test_what_a_capture_forbids_ends_it(stream):
    unsupported, invalidated = 900, 901
    runtime, pointer, size = stream.runtime, ctypes.c_void_p(), ctypes.c_size_t(8)
    stream.begin()
    assert runtime.cudaMalloc(ctypes.byref(pointer), size) == unsupported
    assert stream.end()[0] == invalidated
    stream.begin()
    assert runtime.cudaStreamSynchronize(stream.handle) == unsupported
    assert stream.end()[0] == invalidated
    stream.begin()
    with pytest.raises(CudaError, match="CAPTURE_IMPLICIT"):
        kernels().launch("bounded")
    assert stream.end()[0] == invalidated
    stream.begin()
    with pytest.raises(CudaError, match=r"CAPTURE_UNSUPPORTED.*module"):
        Kernels(KERNELS)
    assert stream.end()[0] == invalidated
    assert runtime.cudaMalloc(ctypes.byref(pointer), size) == 0
    stream.begin()
    assert runtime.cudaFree(pointer) == 0
    assert stream.end()[0] == invalidated


def test_copies_stay_within_an_allocation(stream):
    runtime, pointer, text = stream.runtime, ctypes.c_void_p(), ctypes.create_string_buffer(16)
    assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(8)) == 0
    to_device, invalid = 1, 1
    assert runtime.cudaMemcpyAsync(pointer, text, ctypes.c_size_t(16), to_device, None) == invalid
    assert runtime.cudaMemcpyAsync(pointer, text, ctypes.c_size_t(8), to_device, None) == 0
    assert runtime.cudaFree(pointer) == 0
    assert runtime.cudaFree(pointer) == invalid
