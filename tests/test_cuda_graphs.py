"""CUDA graphs record what a stream is given, and replay it."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest
from cuda_emulation.libraries import runtime_library
from cuda_emulation.raw import CudaError, Kernels

pytestmark = pytest.mark.usefixtures("cuda_device")

KERNELS = r"""
extern "C" __global__ void __launch_bounds__(64) bounded() {}
extern "C" __global__ void add(float* out, float* in, float summand) {
  out[threadIdx.x] = in[threadIdx.x] + summand;
}
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNELS)


class Stream:
    """A stream of the emulated runtime that captures."""

    def __init__(self) -> None:
        self.runtime = ctypes.CDLL(str(runtime_library()))
        self.handle = ctypes.c_void_p()
        assert self.runtime.cudaStreamCreate(ctypes.byref(self.handle)) == 0
        assert self.runtime.cudaStreamBeginCapture(self.handle, 0) == 0

    def end(self) -> tuple[int, ctypes.c_void_p]:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        error = self.runtime.cudaStreamEndCapture(self.handle, ctypes.byref(graph))
        if error == 0:
            self.runtime.cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong())
            self.runtime.cudaGraphDestroy(graph)
        self.runtime.cudaStreamDestroy(self.handle)
        return error, executable


def test_a_graph_records_copies_and_launches_with_their_arguments():
    source, (middle, target) = np.zeros(32, np.float32), np.zeros((2, 32), np.float32)
    stream = Stream()
    copy = stream.runtime.cudaMemcpyAsync
    host_to_host = 0
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (source, middle)]
    assert copy(pointers[1], pointers[0], ctypes.c_size_t(128), host_to_host, stream.handle) == 0
    for summand in (1, 10):
        kernels().launch("add", middle, middle, np.float32(summand), stream=stream.handle)
    kernels().launch("add", target, middle, np.float32(100), stream=stream.handle)
    assert not target.any()  # nothing runs during the capture
    error, graph = stream.end()
    assert error == 0
    for base in (0, 1000):
        source[:] = base + np.arange(32)
        assert stream.runtime.cudaGraphLaunch(graph, None) == 0
        assert (target == base + 111 + np.arange(32)).all()
    assert stream.runtime.cudaGraphExecDestroy(graph) == 0


def test_what_a_capture_forbids_ends_it():
    unsupported, invalidated = 900, 901
    pointer = ctypes.c_void_p()
    stream = Stream()
    assert stream.runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(8)) == unsupported
    assert stream.end()[0] == invalidated
    stream = Stream()
    assert stream.runtime.cudaStreamSynchronize(stream.handle) == unsupported
    assert stream.end()[0] == invalidated
    stream = Stream()
    with pytest.raises(CudaError, match="CAPTURE_IMPLICIT"):
        kernels().launch("bounded")
    assert stream.end()[0] == invalidated
    assert stream.runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(8)) == 0
    beyond = stream.runtime.cudaMemcpyAsync
    to_device, invalid = 1, 1
    text = ctypes.create_string_buffer(16)
    assert beyond(pointer, text, ctypes.c_size_t(16), to_device, None) == invalid
    assert beyond(pointer, text, ctypes.c_size_t(8), to_device, None) == 0
    assert stream.runtime.cudaFree(pointer) == 0
    assert stream.runtime.cudaFree(pointer) == invalid
