"""The emulated CUDA: what it computes is what a GPU would, and what a GPU refuses it refuses."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import cuda_emulation
import ml_dtypes
import numpy as np
import pytest
from cuda_emulation import toolchain
from cuda_emulation.elf import rename_needed
from cuda_emulation.libraries import runtime_library
from cuda_emulation.raw import CudaError, Kernels
from cuda_emulation.source import host_source
from cuda_emulation.toolchain import built
from helpers import assert_close
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cuda_device")

ORDERS = ["forward", "backward", "shuffled:1", "shuffled:2"]

SOURCE = r"""
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
extern "C" __global__ void product_f16(float* c, unsigned* a, unsigned* b) {
  undense_mma_f16(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
extern "C" __global__ void product_bf16(float* c, unsigned* a, unsigned* b) {
  undense_mma_bf16(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
extern "C" __global__ void product_f32(float* c, unsigned* a, unsigned* b) {
  undense_mma_f32(c + threadIdx.x * 4, a + threadIdx.x * 8, b + threadIdx.x * 4);
}
extern "C" __global__ void product_s8(int* c, unsigned* a, unsigned* b) {
  undense_mma_s8(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
extern "C" __global__ void matrices(unsigned* r, unsigned* transposed, unsigned short* rows) {
  __shared__ alignas(16) unsigned short tile[256];
  for (int i = 0; i < 8; ++i) tile[threadIdx.x * 8 + i] = rows[threadIdx.x * 8 + i];
  __syncthreads();
  undense_ldmatrix_x4(r + threadIdx.x * 4, tile + threadIdx.x * 8);
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
extern "C" __global__ void load_once(unsigned* out, unsigned* in) {
  undense_load_once(out, in);
}
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
extern "C" __global__ void add(float* out, float* in, float summand) {
  out[threadIdx.x] = in[threadIdx.x] + summand;
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
    return Kernels(SOURCE)


def words(array: NDArray[Any]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- The language ---


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


# --- The device functions, in the layouts that the PTX instruction set documents ---


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


def layout_32(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """mma.m16n8k32 of bytes: a0..a15 and b0..b7 of each lane."""
    rows = [GROUP if i < 4 or 8 <= i < 12 else GROUP + 8 for i in range(16)]
    columns = [MEMBER * 4 + (i & 3) + (16 if i >= 8 else 0) for i in range(16)]
    b_rows = [MEMBER * 4 + (i & 3) + (16 if i >= 4 else 0) for i in range(8)]
    return fragment(a, rows, columns), fragment(b, b_rows, [GROUP] * 8)


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


def test_matrix_products_of_bytes():
    generator = np.random.default_rng(9)
    a = generator.integers(-128, 128, (16, 32)).astype(np.int8)
    b = generator.integers(-128, 128, (32, 8)).astype(np.int8)
    before = generator.integers(-1000, 1000, (16, 8)).astype(np.int32)
    c = layout_c(before)
    kernels().launch("product_s8", c, *(words(part) for part in layout_32(a, b)))
    assert (c == layout_c(before + a.astype(np.int32) @ b.astype(np.int32))).all()


def test_matrices_are_loaded_by_rows_and_by_columns():
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    rows, columns = np.zeros((32, 4, 2), np.uint16), np.zeros((32, 4, 2), np.uint16)
    kernels().launch("matrices", rows, columns, matrices)
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


def test_addresses_of_wide_copies_and_loads_are_checked():
    source, out = np.zeros(16, np.float32), np.zeros(8, np.float32)
    arguments = (np.int32(0), np.int32(16), np.int32(1))
    with pytest.raises(CudaError, match=r"MISALIGNED_ADDRESS.*kernel copies.*asynchronous copy"):
        kernels().launch("copies", out, source, *arguments, block=(1,))
    kernels().launch("load_once", out, np.arange(4, dtype=np.uint32), block=(1,))
    assert out.view(np.uint32)[:4].tolist() == [0, 1, 2, 3]
    with pytest.raises(CudaError, match=r"MISALIGNED_ADDRESS.*kernel load_once"):
        kernels().launch("load_once", out, source[1:], block=(1,))


# --- What is wrong on a GPU shows ---


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


# --- TVM on the device ---


def build(function: Any, inputs: list[tuple[tuple[Any, ...], str]], rules: list[Any]) -> Any:
    """A Relax executable whose `main` is `function` of its inputs, scheduled by dlight."""
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    variables = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(function(*variables))
        builder.emit_func_output(output)
    target = tvm.target.Target(cuda_emulation.TARGET)
    with target:
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(*rules)(module)
        return tvm.compile(module, target=target)


def run(executable: Any, device: Any, *arrays: NDArray[Any]) -> NDArray[Any]:
    import tvm

    machine = tvm.relax.VirtualMachine(executable, device)
    result = machine["main"](*(tvm.runtime.tensor(array, device) for array in arrays))
    return result.numpy()


def rows() -> Any:
    import tvm

    return tvm.tirx.Var("n", "int64")


def test_a_matmul_of_any_number_of_rows(cuda_device):
    from tvm import relax
    from tvm.s_tir import dlight

    weight = random(11, 40, 24)
    with cuda_emulation.emulated():
        shapes = [((rows(), 40), "float32"), ((40, 24), "float32")]
        executable = build(relax.op.matmul, shapes, [dlight.gpu.Matmul()])
        for n in (1, 5, 33):
            x = random(n, n, 40)
            result = run(executable, cuda_device, x, weight)
            assert_close(result, x.astype(np.float64) @ weight, reduction=40)


@pytest.mark.parametrize("order", ORDERS[:3])
def test_a_gemv_of_halves(cuda_device, order):
    from tvm import relax
    from tvm.s_tir import dlight

    x, weight = random(12, 1, 256).astype(np.float16), random(13, 64, 256).astype(np.float16)

    def product(x: Any, weight: Any) -> Any:
        return relax.op.matmul(x, relax.op.permute_dims(weight), out_dtype="float32")

    with cuda_emulation.emulated(order):
        shapes = [(x.shape, "float16"), (weight.shape, "float16")]
        executable = build(product, shapes, [dlight.gpu.GEMV(), dlight.gpu.Fallback()])
        result = run(executable, cuda_device, x, weight)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert_close(result, expected, reduction=256)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reductions_and_elementwise_kernels(cuda_device, dtype):
    from tvm import relax
    from tvm.s_tir import dlight

    def function(x: Any) -> Any:
        return relax.op.nn.softmax(relax.op.nn.silu(x))

    with cuda_emulation.emulated():
        rules = [dlight.gpu.GeneralReduction(), dlight.gpu.Fallback()]
        executable = build(function, [((rows(), 70), dtype)], rules)
        x = random(14, 3, 70).astype(dtype)
        result = run(executable, cuda_device, x)
    wide = x.astype(np.float64)
    silu = wide / (1 + np.exp(-wide))
    expected = np.exp(silu) / np.exp(silu).sum(axis=1, keepdims=True)
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert result.shape == expected.shape
    assert np.abs(result.astype(np.float64) - expected).max() <= 8 * epsilon * expected.max()


def test_memory_that_no_kernel_wrote_is_not_a_number(cuda_device):
    import tvm

    assert np.isnan(tvm.runtime.empty((5,), "float32", cuda_device).numpy()).all()


def test_the_compiler_of_before_is_back(cuda_device):
    import tvm_ffi

    name = "tvm_callback_cuda_compile"
    before = tvm_ffi.get_global_func(name)
    with cuda_emulation.emulated():
        inside = tvm_ffi.get_global_func(name)
        assert inside(SOURCE) == cuda_emulation.compile(SOURCE)
    assert tvm_ffi.get_global_func(name).same_as(before)


def test_an_error_of_a_launch_is_an_exception_of_tvm(cuda_device, tmp_path):
    import tvm
    from tvm.script import ir as I
    from tvm.script import tirx as T

    header = tmp_path / "fault.h"
    header.write_text(
        "__device__ inline float fault(float x) {\n  if (x < 0) __syncwarp();\n  return 2 * x;\n}\n"
    )

    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((32,), "float32"), y: T.Buffer((32,), "float32")):
            for i in T.thread_binding(32, "threadIdx.x"):
                with T.sblock("y"):
                    j = T.axis.spatial(32, i)
                    y[j] = T.call_extern("float32", "fault", x[j])

    target = tvm.target.Target(cuda_emulation.TARGET)
    x = np.arange(32, dtype=np.float32)
    with cuda_emulation.emulated(headers=[header]), target:
        executable = tvm.compile(Module, target=target)
        y = tvm.runtime.empty((32,), "float32", cuda_device)
        executable["main"](tvm.runtime.tensor(x, cuda_device), y)
        assert (y.numpy() == 2 * x).all()
        with pytest.raises(tvm.error.InternalError, match=r"kernel main_kernel.*deadlock"):
            executable["main"](tvm.runtime.tensor(x - 3, cuda_device), y)


# --- Graphs ---


def test_a_graph_of_the_virtual_machine_is_replayed_with_other_data(cuda_device):
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    weight = random(15, 8, 8)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            hidden = builder.emit(relax.op.add(x, relax.const(np.float32(1))))
            for _ in range(3):
                hidden = builder.emit(
                    relax.op.nn.relu(relax.op.matmul(hidden, relax.const(weight)))
                )
            output = builder.emit_output(relax.op.add(hidden, x))
        builder.emit_func_output(output)
    target = tvm.target.Target(cuda_emulation.TARGET)
    options = {"relax.backend.use_cuda_graph": True}
    with cuda_emulation.emulated(), target, tvm.transform.PassContext(config=options):
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Matmul(), dlight.gpu.Fallback())(module)
        executable = tvm.compile(module, target=target)
        assert "cuda_graph.run_or_capture" in executable.as_text()
        machine = relax.VirtualMachine(executable, cuda_device)
        before = cuda_emulation.graph_launches()
        for seed in range(4):
            given = random(20 + seed, 4, 8)
            result = machine["main"](tvm.runtime.tensor(given, cuda_device)).numpy()
            expected = given + 1.0
            for _ in range(3):
                expected = np.maximum(expected @ weight, 0)
            assert_close(result, expected + given, reduction=24)
        assert cuda_emulation.graph_launches() == before + 3  # the first call captures


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


# --- Building ---


def test_the_message_of_the_compiler_is_the_error():
    with pytest.raises(RuntimeError, match="no_such_function"):
        cuda_emulation.compile('extern "C" __global__ void k() {\n  no_such_function();\n}\n')
    with pytest.raises(ValueError, match="no kernel"):
        host_source("int x;")


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(target):
        target.write_bytes(b"half")
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        built(tmp_path / "file", fails)
    assert list(tmp_path.iterdir()) == []
    assert (
        built(tmp_path / "file", lambda target: target.write_bytes(b"all")).read_bytes() == b"all"
    )
    assert built(tmp_path / "file", fails).read_bytes() == b"all"


def test_names_that_are_not_equally_long_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        rename_needed(b"", "libcuda.so.1", "cuda.so.1")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(cuda_emulation.EmulationUnavailable, match=r"g\+\+; install it"):
        toolchain.compiler.__wrapped__()
    monkeypatch.setattr(toolchain, "_HEADERS", ("no_such_header.h",))
    with pytest.raises(cuda_emulation.EmulationUnavailable, match="no CUDA toolkit with no_such"):
        toolchain.cuda_headers.__wrapped__()
