"""The emulated CUDA C++ computes what a GPU would."""

from __future__ import annotations

import functools

import cuda_emulation
import ml_dtypes
import numpy as np
import pytest
from cuda_emulation.raw import Kernels
from cuda_helpers import ORDERS, random
from helpers import assert_close

pytestmark = pytest.mark.usefixtures("cuda_device")

KERNELS = r"""
extern "C" __global__ void shuffles(int* out, int argument, int width) {
  int lane = threadIdx.x, value = 100 + lane;
  out[lane] = __shfl_sync(0xffffffffu, value, argument, width);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, value, argument, width);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, value, argument, width);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, value, argument, width);
}
extern "C" __global__ void shuffled_types(float* f, half* h, nv_bfloat16* b, half2* pair,
                                          double* d) {
  int lane = threadIdx.x;
  f[lane] = __shfl_xor_sync(0xffffffffu, f[lane], 1);
  h[lane] = __shfl_xor_sync(0xffffffffu, h[lane], 1);
  b[lane] = __shfl_xor_sync(0xffffffffu, b[lane], 1);
  pair[lane] = __shfl_xor_sync(0xffffffffu, pair[lane], 1);
  d[lane] = __shfl_xor_sync(0xffffffffu, d[lane], 1);
}
extern "C" __global__ void part_of_a_warp(unsigned* out) {
  int lane = threadIdx.x;
  out[lane] = 0;
  if (lane < 12) {
    unsigned mask = __activemask();
    out[lane] = mask | __shfl_down_sync(mask, lane, 4) << 16;
  }
  __syncwarp();
  out[32 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  out[64 + lane] = __any_sync(0xffffffffu, lane == 7) * 2 + __all_sync(0xffffffffu, lane < 31);
}
extern "C" __global__ void integers(int* out, int a, int b, unsigned selector) {
  out[0] = __dp4a(a, b, 5);
  out[1] = __dp4a(unsigned(a), unsigned(b), 5u);
  out[2] = __byte_perm(a, b, selector);
  out[3] = __popc(a);
}
extern "C" __global__ void halves(half* h, nv_bfloat16* b) {
  half2* p = (half2*)h;
  p[3] = __hsub2(p[0], p[1]);
  p[4] = __hmul2(p[0], p[1]);
  p[5] = __hfma2(p[0], p[1], p[2]);
  p[6] = __halves2half2(h[1], h[0]);
  nv_bfloat162* q = (nv_bfloat162*)b;
  q[3] = __hsub2(q[0], q[1]);
  q[4] = __hmul2(q[0], q[1]);
  q[5] = __hfma2(q[0], q[1], q[2]);
  q[6] = __halves2bfloat162(b[1], b[0]);
}
extern "C" __global__ void functions(float* x) {
  x[0] = __expf(x[0]);
  x[1] = rsqrtf(x[1]);
  x[2] = max(x[2], 0.0f);
  x[3] = fmaf(x[3], 2.0f, 1.0f);
}
extern "C" __global__ void dimensions(int* out) {
  if (threadIdx.x + threadIdx.y + threadIdx.z == 0) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block] = blockDim.x * 100 + blockDim.y * 10 + blockDim.z;
  }
}
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNELS)


@pytest.mark.parametrize("width", [32, 16, 8, 2])
@pytest.mark.parametrize("argument", [0, 1, 5, 31])
def test_shuffles_follow_the_segments_of_the_warp(argument, width):
    out = np.zeros((4, 32), np.int32)
    kernels().launch("shuffles", out, np.int32(argument), np.int32(width))
    lane = np.arange(32)
    begin = lane // width * width
    end = begin + width
    up = np.where(lane - argument >= begin, lane - argument, lane)
    down = np.where(lane + argument < end, lane + argument, lane)
    crossed = np.where((lane ^ argument) < end, lane ^ argument, lane)
    sources = np.stack([begin + argument % width, up, down, crossed])
    assert (out == 100 + sources).all()


def test_shuffles_of_each_type():
    values = [
        random(0, 32),
        random(1, 32).astype(np.float16),
        random(2, 32).astype(ml_dtypes.bfloat16),
        random(3, 32, 2).astype(np.float16),
        random(4, 32).astype(np.float64),
    ]
    given = [value.copy() for value in values]
    kernels().launch("shuffled_types", *given)
    for before, after in zip(values, given, strict=True):
        assert (after == before[np.arange(32) ^ 1]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_went_another_way_are_not_active(order):
    out = np.zeros((3, 32), np.uint32)
    with cuda_emulation.emulated(order):
        kernels().launch("part_of_a_warp", out)
    lane = np.arange(32)
    # Beyond the lanes that take part, what a shuffle reads is not defined.
    assert (out[0, :8] == (0xFFF | (lane[:8] + 4) << 16)).all()
    assert (out[0, 8:12] & 0xFFF == 0xFFF).all()
    assert (out[0, 12:] == 0).all()
    assert (out[1] == sum(1 << int(i) for i in lane[lane % 3 == 0])).all()
    assert (out[2] == 2).all()


def test_integer_functions():
    a, b = np.array([-1, 2, -3, 127], np.int8), np.array([5, -128, 7, 9], np.int8)
    out = np.zeros(4, np.int32)
    scalars = (a.view(np.int32)[0], b.view(np.int32)[0], np.uint32(0x9A41))
    kernels().launch("integers", out, *scalars)
    wide = a.astype(int), b.astype(int)
    assert out[0] == 5 + wide[0] @ wide[1]
    assert out[1] == 5 + a.view(np.uint8).astype(int) @ b.view(np.uint8).astype(int)
    # Selectors from the lowest: byte 1, byte 4 (b's lowest), sign of byte 2, sign of byte 1.
    assert out[2:3].view(np.uint8).tolist() == [2, 5, 255, 0]
    assert out[3] == sum(int(byte).bit_count() for byte in a.view(np.uint8))


def test_arithmetic_of_pairs_of_halves():
    for dtype, position in ((np.float16, 0), (ml_dtypes.bfloat16, 1)):
        values = np.zeros((7, 2), dtype)
        values[:3] = random(5, 3, 2).astype(dtype)
        arrays = [np.zeros((7, 2), np.float16), np.zeros((7, 2), ml_dtypes.bfloat16)]
        arrays[position] = values
        kernels().launch("halves", *arrays, block=(1,))
        a, b, c = values[:3].astype(np.float64)
        expected = [a - b, a * b, a * b + c, a[::-1]]
        assert (values[3:] == np.array(expected).astype(dtype)).all()


def test_functions_of_floats():
    x = np.array([0.5, 4.0, np.nan, 3.0], np.float32)
    kernels().launch("functions", x, block=(1,))
    assert_close(x, [np.exp(0.5), 0.5, 0.0, 7.0], reduction=1)


def test_blocks_and_grids_of_three_dimensions():
    out = np.zeros((4, 3, 2), np.int32)
    kernels().launch("dimensions", out, grid=(2, 3, 4), block=(4, 3, 2))
    assert (out == 432).all()
