"""The device functions that kernels call by name, in the layouts that PTX documents."""

from __future__ import annotations

import functools
from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import pytest
from cuda_emulation.raw import CudaError, Kernels
from cuda_helpers import ORDERS, random
from helpers import assert_close
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cuda_device")

KERNELS = r"""
extern "C" __global__ void product_f16(float* c, unsigned* a, unsigned* b) {
  undense_mma_f16(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
extern "C" __global__ void product_bf16(float* c, unsigned* a, unsigned* b) {
  undense_mma_bf16(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
extern "C" __global__ void product_f32(float* c, unsigned* a, unsigned* b) {
  undense_mma_f32(c + threadIdx.x * 4, a + threadIdx.x * 8, b + threadIdx.x * 4);
}
extern "C" __global__ void matrices(unsigned* r, unsigned* transposed, unsigned short* rows,
                                    int offset) {
  __shared__ alignas(16) unsigned short tile[256];
  for (int i = 0; i < 8; ++i) tile[threadIdx.x * 8 + i] = rows[threadIdx.x * 8 + i];
  __syncthreads();
  undense_ldmatrix_x4(r + threadIdx.x * 4, tile + threadIdx.x * 8 + offset);
  undense_ldmatrix_x4_trans(transposed + threadIdx.x * 4, tile + threadIdx.x * 8);
}
extern "C" __global__ void copies(float* out, float* in, int pending, int bytes, int offset) {
  __shared__ alignas(16) float tile[8];
  undense_copy_async(tile, in + offset, 16);
  undense_copy_commit();
  undense_copy_async(tile + 4, in + 4, bytes);
  undense_copy_commit();
  if (pending >= 0) undense_copy_wait(pending);
  for (int i = 0; i < 8; ++i) out[i] = tile[i];
}
extern "C" __global__ void tile(float* out, half* a, half* b, int wait) {
  __shared__ alignas(16) half tiles[2][16 * 16];
  int lane = threadIdx.x;
  undense_copy_async(tiles[0] + lane * 8, a + lane * 8, 16);
  undense_copy_async(tiles[1] + lane * 8, b + lane * 8, 16);
  undense_copy_commit();
  if (wait) undense_copy_wait(0);
  __syncthreads();
  unsigned rows[4], columns[4];
  undense_ldmatrix_x4(rows, tiles[0] + lane % 16 * 16 + lane / 16 * 8);
  undense_ldmatrix_x4(columns, tiles[1] + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
  for (int n = 0; n < 2; ++n) {
    float c[4] = {0, 0, 0, 0};
    undense_mma_f16(c, rows, columns + n * 2);
    for (int i = 0; i < 4; ++i) {
      out[(lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
  }
}
"""


@functools.cache
def kernels() -> Kernels:
    return Kernels(KERNELS)


def words(array: NDArray[Any]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)


def fragment(matrix: NDArray[Any], rows: list[Any], columns: list[Any]) -> NDArray[Any]:
    """[lane, element] of a matrix."""
    return np.ascontiguousarray(
        np.stack([matrix[r, c] for r, c in zip(rows, columns, strict=True)], axis=1)
    )


GROUP, MEMBER = np.arange(32) // 4, np.arange(32) % 4


def layout_16(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """mma.m16n8k16: a0..a7 and b0..b3 of each lane."""
    rows = [GROUP if i < 2 or 4 <= i < 6 else GROUP + 8 for i in range(8)]
    columns = [MEMBER * 2 + (i & 1) + (8 if i >= 4 else 0) for i in range(8)]
    b_rows = [MEMBER * 2 + (i & 1) + (8 if i >= 2 else 0) for i in range(4)]
    return fragment(a, rows, columns), fragment(b, b_rows, [GROUP] * 4)


def layout_c(c: NDArray[Any]) -> NDArray[Any]:
    rows = [GROUP if i < 2 else GROUP + 8 for i in range(4)]
    return fragment(c, rows, [MEMBER * 2 + (i & 1) for i in range(4)])


@pytest.mark.parametrize("name", ["f16", "bf16", "f32"])
def test_matrix_products_of_floats(name):
    dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}[name]
    a, b = random(6, 16, 16).astype(dtype), random(7, 16, 8).astype(dtype)
    before = random(8, 16, 8)
    c = layout_c(before)
    kernels().launch(f"product_{name}", c, *(words(part) for part in layout_16(a, b)))
    expected = before + a.astype(np.float64) @ b.astype(np.float64)
    assert_close(c, layout_c(expected), reduction=16)


def test_matrices_are_loaded_by_rows_and_by_columns():
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    rows, columns = np.zeros((32, 4, 2), np.uint16), np.zeros((32, 4, 2), np.uint16)
    kernels().launch("matrices", rows, columns, matrices, np.int32(0))
    for lane in range(32):
        row, first = lane // 4, lane % 4 * 2
        assert (rows[lane] == matrices[:, row, first : first + 2]).all()
        assert (columns[lane] == matrices[:, first : first + 2, row]).all()


def test_asynchronous_copies_are_made_when_they_are_waited_for():
    source = np.arange(1, 9, dtype=np.float32)

    def copied(pending: int, bytes: int = 16) -> NDArray[np.float32]:
        out = np.zeros(8, np.float32)
        arguments = (np.int32(pending), np.int32(bytes), np.int32(0))
        kernels().launch("copies", out, source, *arguments, block=(1,))
        return out

    assert np.isnan(copied(-1)).all()  # no wait
    assert np.isnan(copied(2)).all()  # both groups may still be under way
    one = copied(1)
    assert (one[:4] == source[:4]).all()
    assert np.isnan(one[4:]).all()
    assert (copied(0) == source).all()
    assert copied(0, bytes=0).tolist() == [1, 2, 3, 4, 0, 0, 0, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_tile_is_copied_loaded_and_multiplied(order):
    a, b = random(16, 16, 16).astype(np.float16), random(17, 16, 16).astype(np.float16)
    right, wrong = np.zeros((2, 16, 16), np.float32)
    with cuda_emulation.emulated(order):
        kernels().launch("tile", right, a, b, np.int32(1))
        kernels().launch("tile", wrong, a, b, np.int32(0))
    assert_close(right, a.astype(np.float64) @ b.T.astype(np.float64), reduction=16)
    assert np.isnan(wrong).all()


def test_addresses_of_copies_and_of_rows_of_matrices_are_checked():
    source, out = np.zeros(16, np.float32), np.zeros(8, np.float32)
    arguments = (np.int32(0), np.int32(16), np.int32(1))
    with pytest.raises(CudaError, match=r"MISALIGNED_ADDRESS.*kernel copies.*asynchronous copy"):
        kernels().launch("copies", out, source, *arguments, block=(1,))
    rows, columns = np.zeros((2, 32, 8), np.uint16)
    with pytest.raises(CudaError, match=r"MISALIGNED_ADDRESS.*kernel matrices.*ldmatrix"):
        kernels().launch("matrices", rows, columns, np.zeros(256, np.uint16), np.int32(1))
