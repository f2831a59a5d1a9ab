"""The emulated products of a warpgroup: PTX's layouts, and what orders them."""

from __future__ import annotations

import functools
from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import pytest
from cuda_emulation.raw import CudaError, Kernels
from cuda_helpers import ORDERS, random
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cuda_device")

FAULTS = {
    "no_fence": "wgmma before any wgmma.fence",
    "no_proxy_fence": "without a fence.proxy.async of its thread",
    "proxy_fence_before_the_copies": "without a fence.proxy.async of its thread",
    "operand_behind_the_fence": "operands of a wgmma were stored to behind the last wgmma.fence",
    "sums_behind_the_fence": "sums of a wgmma were stored to behind the last wgmma.fence",
    "operand_before_the_wait": "operands of a wgmma were stored to before wgmma.wait_group",
    "sums_before_the_wait": "sums of a wgmma were stored to before wgmma.wait_group",
    "shared_before_the_wait": "shared memory that a wgmma reads was stored to before",
    "no_wait": "a wgmma.wait_group 0 is missing",
    "waits_for_too_few": "a wgmma.wait_group 0 is missing",
    "another_descriptor": "another descriptor in thread",
    "half_a_warpgroup": "deadlock: 64 threads wait in their warpgroup",
    "beyond": "wgmma reads beyond the shared memory",
    "unswizzled": "swizzle mode 0 and base offset 0 is not emulated",
}
SHARED = 128 * 128 + 1024
KERNEL = r"""
enum Fault { NAMES };

extern "C" __global__ void product(float* d, unsigned* a, unsigned* b, int step, int bfloat,
                                   int fault) {
  extern __shared__ unsigned memory[];
  unsigned* tile = memory + (1024 - undense_shared_offset(memory) % 1024) / 4;
  for (int i = threadIdx.x; i < 128 * 32; i += 128) {
    int row = i / 32, unit = i % 32 / 4;
    undense_copy_async_4(tile + row * 32 + (unit ^ row % 8) * 4 + i % 4, b + i, 4);
  }
  undense_copy_commit();
  if (fault == proxy_fence_before_the_copies) undense_fence_proxy_async();
  undense_copy_wait(0);
  bool fenced = fault != no_proxy_fence && fault != proxy_fence_before_the_copies;
  if (fenced) undense_fence_proxy_async();
  __syncthreads();
  unsigned long long swizzle = fault == unswizzled ? 0 : 1, stride = 1024 / 16;
  unsigned start = undense_shared_offset(tile) + step * 32 + (fault == beyond ? 1024 : 0);
  unsigned long long descriptor = start / 16 | stride << 32 | swizzle << 62;
  if (fault == another_descriptor && threadIdx.x / 32 == 2) descriptor += 2;
  float sums[64] = {};
  unsigned operand[4];
  for (int i = 0; i < 4; ++i) operand[i] = a[threadIdx.x * 4 + i];
  if (fault != no_fence) undense_wgmma_fence();
  if (fault == half_a_warpgroup && threadIdx.x / 64) return;
  for (int i = 0; i < 2; ++i) {
    if (bfloat) {
      undense_wgmma_bf16(sums, operand, descriptor);
    } else {
      undense_wgmma_f16(sums, operand, descriptor);
    }
    undense_wgmma_commit();
    if (fault == operand_before_the_wait && i == 1) operand[1] ^= 1;
    if (fault == sums_before_the_wait) sums[63] = 0;
    if (fault == operand_behind_the_fence || fault == sums_behind_the_fence) {
      undense_wgmma_finish(sums, 64);
      if (fault == operand_behind_the_fence) operand[3] ^= 1;
      if (fault == sums_behind_the_fence) sums[5] += 1;
    }
  }
  if (fault == shared_before_the_wait && threadIdx.x == 0) tile[step * 8 ^ 4] ^= 1;
  if (fault == waits_for_too_few) undense_wgmma_wait_3();
  if (fault != no_wait && fault != waits_for_too_few) undense_wgmma_finish(sums, 64);
  for (int i = 0; i < 64; ++i) d[threadIdx.x * 64 + i] = sums[i];
}
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNEL.replace("NAMES", ", ".join(["none", *FAULTS])))


def launch(dtype: Any = np.float16, step: int = 0, fault: str = "none") -> tuple[NDArray[Any], ...]:
    """Twice `a b`, as the kernel leaves it and as it is: `[64, 128]`."""
    a, b = random(1, 64, 16).astype(dtype), random(2, 128, 64).astype(dtype)
    thread, i = np.arange(128)[:, None], np.arange(8)
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    given = np.ascontiguousarray(a[row, thread % 4 * 2 + i % 2 + i // 4 * 8]).view(np.uint32)
    d = np.zeros((128, 64), np.float32)
    number = np.int32(["none", *FAULTS].index(fault))
    scalars = (np.int32(step), np.int32(dtype != np.float16), number)
    kernels().launch("product", d, given, b.view(np.uint32), *scalars, block=(128,), shared=SHARED)
    found = np.empty((64, 128), np.float32)
    j = np.arange(64)
    rows = thread // 32 * 16 + thread % 32 // 4 + j // 2 % 2 * 8
    found[rows, j // 4 * 8 + thread % 4 * 2 + j % 2] = d
    part = b[:, 16 * step : 16 * step + 16].astype(np.float64)
    return found, 2 * a.astype(np.float64) @ part.T


@pytest.mark.parametrize("order", ORDERS)
def test_products_have_the_documented_layouts_in_any_order_of_threads(order: str) -> None:
    for step in range(4):
        with cuda_emulation.emulated(order):
            found, wanted = launch(step=step)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_products_of_bfloat16() -> None:
    found, wanted = launch(ml_dtypes.bfloat16, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS[:3])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_undefined_on_a_gpu_is_an_error(fault: str, order: str) -> None:
    with cuda_emulation.emulated(order), pytest.raises(CudaError, match=FAULTS[fault]):
        launch(step=3, fault=fault)


def test_a_block_with_part_of_a_warpgroup_is_refused() -> None:
    d, words = np.zeros((96, 64), np.float32), np.zeros(128 * 32, np.uint32)
    scalars = (np.int32(0), np.int32(0), np.int32(0))
    with pytest.raises(CudaError, match="its warpgroup has only 96 threads"):
        kernels().launch("product", d, words, words, *scalars, block=(96,), shared=SHARED)
