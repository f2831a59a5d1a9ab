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

// The same for 4 bytes, of which `bytes` is 0 or 4.
static __device__ __forceinline__ void undense_copy_async_4(void* shared, const void* global,
                                                            int bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes)
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

// What follows is Hopper's, of sm_90a alone: ptxas refuses it elsewhere, so kernels for others call
// none of it.

// Where a place in shared memory lies within the window that descriptors address.
static __device__ __forceinline__ unsigned undense_shared_offset(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// What this thread has stored to shared memory is there for wgmma, after a barrier for all threads.
static __device__ __forceinline__ void undense_fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// What the warpgroup's threads have stored to registers comes before the products that follow.
static __device__ __forceinline__ void undense_wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void undense_wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until no more than three of the last groups of products are under way.
static __device__ __forceinline__ void undense_wgmma_wait_3() {
  asm volatile("wgmma.wait_group.sync.aligned 3;" ::: "memory");
}

// Waits for all products. To the compiler these sums come from here: it would move what is done
// with them before the wait, and ptxas would then let one product wait for the other.
static __device__ __forceinline__ void undense_wgmma_finish(float* sums, int count) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// c += A B for a warpgroup: 64 rows of A in registers, 128 columns of B by the descriptor of shared
// memory, and 16 inputs: PTX ISA, wgmma.mma_async.m64n128k16. It runs until a wait.
#define UNDENSE_WGMMA(type, c, a, descriptor)                                                     \
  asm volatile(                                                                                   \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                           \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "          \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "          \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"            \
      "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                                                 \
      : UNDENSE_SUMS(c, 0), UNDENSE_SUMS(c, 8), UNDENSE_SUMS(c, 16), UNDENSE_SUMS(c, 24),         \
        UNDENSE_SUMS(c, 32), UNDENSE_SUMS(c, 40), UNDENSE_SUMS(c, 48), UNDENSE_SUMS(c, 56)        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor))

#define UNDENSE_SUMS(c, i)                                                                        \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),     \
      "+f"(c[i + 6]), "+f"(c[i + 7])

static __device__ __forceinline__ void undense_wgmma_f16(float* c, const unsigned* a,
                                                         unsigned long long descriptor) {
  UNDENSE_WGMMA("f16", c, a, descriptor);
}

static __device__ __forceinline__ void undense_wgmma_bf16(float* c, const unsigned* a,
                                                          unsigned long long descriptor) {
  UNDENSE_WGMMA("bf16", c, a, descriptor);
}

#undef UNDENSE_WGMMA
#undef UNDENSE_SUMS
