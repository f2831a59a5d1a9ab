"""What is wrong on a GPU shows on the emulated one, as an error or as another result."""

from __future__ import annotations

import functools

import cuda_emulation
import numpy as np
import pytest
from cuda_emulation.raw import CudaError, Kernels
from cuda_helpers import ORDERS, random

pytestmark = pytest.mark.usefixtures("cuda_device")

KERNELS = r"""
extern "C" __global__ void reversed(float* x, int barrier) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  x[threadIdx.x] = tile[63 - threadIdx.x];
}
extern "C" __global__ void unwritten(float* out) {
  __shared__ float tile[1];
  extern __shared__ unsigned char dynamic[];
  out[blockIdx.x * 2] = tile[0];
  out[blockIdx.x * 2 + 1] = ((float*)dynamic)[0];
  tile[0] = 1.0f;
  ((float*)dynamic)[0] = 1.0f;
}
extern "C" __global__ void half_a_barrier() {
  if (threadIdx.x < 16) __syncthreads();
}
extern "C" __global__ void two_barriers() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
extern "C" __global__ void half_a_shuffle(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}
extern "C" __global__ void whole_product_of_half_a_warp(float* c, unsigned* a, unsigned* b) {
  if (threadIdx.x < 16) undense_mma_f16(c, a, b);
}
extern "C" __global__ void __launch_bounds__(64) bounded() {}
extern "C" __global__ void vector(float* x, int offset) {
  *(float4*)x = *(float4*)(x + offset);
}
extern "C" __global__ void store(float* x, long offset) { x[offset] = 1.0f; }
extern "C" __global__ void unwritten_registers(float* out, half* h, int written) {
  float x[4];
  half y[4];
  for (int i = 0; i < written; ++i) x[i] = y[i] = 1;
  for (int i = 0; i < 4; ++i) out[i] = x[i], h[i] = y[i];
}
extern "C" __global__ void endless(volatile int* x) {
  while (*x == 0) {}
}
extern "C" __global__ void deep(float* out, int depth) {
  volatile float local[1024];
  for (int i = 0; i < depth; ++i) local[i * 512] = i;
  out[0] = local[0];
}
extern "C" __global__ void divide(int* x, int by) { x[0] = x[0] / by; }
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNELS)


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_shows(order):
    x = random(10, 64)
    right, wrong = x.copy(), x.copy()
    with cuda_emulation.emulated(order):
        kernels().launch("reversed", right, np.int32(1), block=(64,))
        kernels().launch("reversed", wrong, np.int32(0), block=(64,))
    assert (right == x[::-1]).all()
    assert np.isnan(wrong).any()


def without_barrier() -> list[bool]:
    """Which entries were read before they were written, in the order that is set."""
    x = random(10, 64)
    kernels().launch("reversed", x, np.int32(0), block=(64,))
    return np.isnan(x).tolist()


def test_orders_differ_and_a_seed_repeats():
    seen = {}
    for order in (*ORDERS, "again"):
        with cuda_emulation.emulated("shuffled:1" if order == "again" else order):
            seen[order] = without_barrier()
    assert seen["forward"] == [True] * 32 + [False] * 32
    assert seen["backward"] == [False] * 32 + [True] * 32
    assert seen["again"] == seen["shuffled:1"] != seen["shuffled:2"]
    with pytest.raises(KeyError), cuda_emulation.emulated("sideways"):
        pass


def test_the_order_of_before_is_back():
    with cuda_emulation.emulated("backward"):
        with cuda_emulation.emulated("forward"):
            inside = without_barrier()
        assert without_barrier() == [not entry for entry in inside]
    assert without_barrier() == inside


def test_shared_memory_is_unwritten_at_the_beginning_of_each_block():
    out = np.zeros((3, 2), np.float32)
    kernels().launch("unwritten", out, grid=(3,), block=(1,), shared=4)
    assert np.isnan(out).all()


def test_registers_that_nothing_was_assigned_to_show():
    x, half = np.zeros(4, np.float32), np.zeros(4, np.float16)
    kernels().launch("unwritten_registers", x, half, np.int32(1), block=(1,))
    assert x[0] == half[0] == 1
    assert (x[1:] < -1e38).all()
    assert np.isnan(half[1:]).all()


def test_a_kernel_that_does_not_end_is_an_error():
    with (
        cuda_emulation.emulated(seconds=1),
        pytest.raises(CudaError, match=r"kernel endless.*does not end within 1 seconds"),
    ):
        kernels().launch("endless", np.zeros(1, np.int32))


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("half_a_barrier", r"deadlock: 16 threads wait at __syncthreads of line \d+"),
        ("two_barriers", r"waits at __syncthreads of line \d+ while others wait at that of"),
    ],
)
def test_threads_that_wait_for_ever_are_an_error(kernel, reason):
    with pytest.raises(CudaError, match=f"kernel {kernel}, .*{reason}"):
        kernels().launch(kernel)


def test_warps_that_are_not_whole_are_an_error():
    with pytest.raises(CudaError, match=r"kernel half_a_shuffle.*16 threads wait in their warp"):
        kernels().launch("half_a_shuffle", np.zeros(32, np.int32))
    fragments = [np.zeros(4, np.uint32)] * 2
    with pytest.raises(CudaError, match=r"whole_product_of_half_a_warp.*wait in their warp"):
        kernels().launch("whole_product_of_half_a_warp", np.zeros(4, np.float32), *fragments)


def test_limits_of_a_launch():
    out = np.zeros(2, np.float32)
    with pytest.raises(CudaError, match=r"INVALID_VALUE.*block of 1025 threads; at most 1024"):
        kernels().launch("half_a_barrier", block=(1025,))
    kernels().launch("bounded", block=(64,))
    with pytest.raises(CudaError, match="block of 65 threads; at most 64"):
        kernels().launch("bounded", block=(65,))
    with pytest.raises(CudaError, match="empty"):
        kernels().launch("bounded", grid=(0,))
    # The kernel's 4 bytes of static shared memory count too.
    kernels().launch("unwritten", out, block=(1,), shared=48 * 1024 - 4)
    with pytest.raises(CudaError, match=r"INVALID_VALUE.*49152 bytes of dynamic shared memory"):
        kernels().launch("unwritten", out, block=(1,), shared=48 * 1024)
    most = 227 * 1024 - 4
    kernels().launch("unwritten", out, block=(1,), shared=most, allowed_shared=most)
    with pytest.raises(CudaError, match=f"at most {most}"):
        kernels().launch("unwritten", out, block=(1,), shared=most, allowed_shared=most + 1)


def test_addresses_that_a_gpu_faults_on():
    x = np.zeros(64, np.float32)
    kernels().launch("vector", x, np.int32(4), block=(1,))
    with pytest.raises(CudaError, match=r"MISALIGNED_ADDRESS.*kernel vector.*float4.*of 16"):
        kernels().launch("vector", x, np.int32(1), block=(1,))
    with pytest.raises(CudaError, match=r"ILLEGAL_ADDRESS.*kernel store.*out of bounds"):
        kernels().launch("store", x, np.int64(1 << 40), block=(1,))
    with pytest.raises(CudaError, match=r"kernel divide.*divided by zero"):
        kernels().launch("divide", np.ones(1, np.int32), np.int32(0), block=(1,))
    with pytest.raises(CudaError, match=r"kernel deep.*out of bounds"):
        kernels().launch("deep", x, np.int32(1 << 20), block=(1,))
    kernels().launch("store", x, np.int64(5), block=(1,))  # the device goes on
    assert x[5] == 1
