// Device functions of inline PTX; a host emulation of kernels brings its own instead.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// c += A B for 16 rows of A, 8 columns of B and 16 inputs: PTX ISA, mma.m16n8k16.
static __device__ __forceinline__ void undense_mma_f16(float* c, const unsigned* a,
                                                       const unsigned* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void undense_mma_bf16(float* c, const unsigned* a,
                                                        const unsigned* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void undense_mma_tf32(float* c, unsigned a0, unsigned a1,
                                                        unsigned a2, unsigned a3, unsigned b0,
                                                        unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What a float has beyond the 11 leading bits that TF32 keeps.
static __device__ __forceinline__ void undense_split(unsigned value, unsigned* high,
                                                     unsigned* low) {
  *high = value & 0xffffe000u;
  *low = __float_as_uint(__uint_as_float(value) - __uint_as_float(*high));
}

// The same product of float32 values, each the sum of two TF32 values: three products of the four,
// the last one being below the rounding of float32 (the scheme of CUTLASS's 3xTF32).
static __device__ __forceinline__ void undense_mma_f32(float* c, const unsigned* a,
                                                       const unsigned* b) {
  unsigned a_high[8], a_low[8], b_high[4], b_low[4];
  for (int i = 0; i < 8; ++i) undense_split(a[i], &a_high[i], &a_low[i]);
  for (int i = 0; i < 4; ++i) undense_split(b[i], &b_high[i], &b_low[i]);
  for (int half = 0; half < 2; ++half) {
    const int i = 4 * half, j = 2 * half;
    undense_mma_tf32(c, a_low[i], a_low[i + 2], a_low[i + 1], a_low[i + 3], b_high[j],
                     b_high[j + 1]);
    undense_mma_tf32(c, a_high[i], a_high[i + 2], a_high[i + 1], a_high[i + 3], b_low[j],
                     b_low[j + 1]);
    undense_mma_tf32(c, a_high[i], a_high[i + 2], a_high[i + 1], a_high[i + 3], b_high[j],
                     b_high[j + 1]);
  }
}

// Four 8 by 8 matrices of halves, whose rows the lanes of each eight in turn give: lane 4 g + t
// takes of each the entries 2 t and 2 t + 1 of row g: PTX ISA, ldmatrix.
static __device__ __forceinline__ void undense_ldmatrix_x4(unsigned* r, const void* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// The same transposed: entries g of rows 2 t and 2 t + 1.
static __device__ __forceinline__ void undense_ldmatrix_x4_trans(unsigned* r, const void* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// 2 to the power of x within two units in the last place; powers below float32's normal numbers
// are 0.
static __device__ __forceinline__ float undense_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Begins to copy 16 bytes to shared memory: the first `bytes`, 0 or 16, and zeros.
static __device__ __forceinline__ void undense_copy_async(void* shared, const void* global,
                                                          int bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

static __device__ __forceinline__ void undense_copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until no more than `pending` of the last groups are under way; a constant.
static __device__ __forceinline__ void undense_copy_wait(int pending) {
  switch (pending) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 5:
      asm volatile("cp.async.wait_group 5;" ::: "memory");
      break;
    case 7:
      asm volatile("cp.async.wait_group 7;" ::: "memory");
      break;
    default:  // more than any kernel has asked for: wait for all
      asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
}
