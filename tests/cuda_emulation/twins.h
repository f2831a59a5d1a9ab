// The device functions that kernels call by name, where the shipped ones are PTX.
//
// The layouts are those of the PTX instruction set's matrix fragments: in a lane, `group` is
// lane / 4 and `member` is lane % 4.
#pragma once

#include "emulation.h"
#include "warpgroup.h"

#include <utility>

namespace emulation {

// One lane's part in a matrix product or a matrix load.
struct Fragments {
  void* c;
  const void* a;
  const void* b;
};

inline void require_aligned(const void* address, const char* function) {
  if (reinterpret_cast<uintptr_t>(address) % 16) {
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address %p for %s, which needs a multiple of 16",
         address, function);
  }
}

inline void require_whole_warp(void* const* lanes, const char* function) {
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (!lanes[lane]) fail(CUDA_ERROR_LAUNCH_FAILED, "%s without lane %u of its warp", function, lane);
  }
}

// c[16, 8] += a[16, k] · b[k, 8]: a lane holds runs of neighbouring elements of k, and k has two
// halves of four runs each.
template <typename Element, typename Sum, unsigned run, Sum (*widen)(Element)>
__attribute__((optimize("O3"))) void multiply_fragments(void* const* lanes) {
  require_whole_warp(lanes, "a matrix product");
  constexpr unsigned k_extent = 8 * run;
  Sum a[16][k_extent], b[k_extent][8], c[16][8];
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    auto& fragments = *static_cast<Fragments*>(lanes[lane]);
    auto* a_given = static_cast<const Element*>(fragments.a);
    auto* b_given = static_cast<const Element*>(fragments.b);
    auto* c_given = static_cast<const Sum*>(fragments.c);
    unsigned group = lane / 4, member = lane % 4;
    for (unsigned i = 0; i < 4 * run; ++i) {
      unsigned row = group + (i / run % 2 ? 8 : 0);
      unsigned k = member * run + i % run + (i / run / 2 ? 4 * run : 0);
      a[row][k] = widen(a_given[i]);
    }
    for (unsigned i = 0; i < 2 * run; ++i) {
      unsigned k = member * run + i % run + (i / run ? 4 * run : 0);
      b[k][group] = widen(b_given[i]);
    }
    for (unsigned i = 0; i < 4; ++i) c[group + i / 2 * 8][member * 2 + i % 2] = c_given[i];
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < k_extent; ++k) {
      for (unsigned column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    auto* c_taken = static_cast<Sum*>(static_cast<Fragments*>(lanes[lane])->c);
    unsigned group = lane / 4, member = lane % 4;
    for (unsigned i = 0; i < 4; ++i) c_taken[i] = c[group + i / 2 * 8][member * 2 + i % 2];
  }
}

template <typename Element, float (*widen)(Element)>
float widen_bits(uint16_t bits) {
  Element value;
  memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return widen(value);
}

inline float widen_f16(__half value) { return __half2float(value); }
inline float widen_bf16(__nv_bfloat16 value) { return __bfloat162float(value); }
inline float widen_f32(float value) { return value; }

inline void multiply(Collective operation, void* c, const void* a, const void* b, int line) {
  Fragments lane{c, a, b};
  warp_collective(~0u, &lane, operation, line);
}

template <bool transposed>
void load_matrices(void* const* lanes) {
  require_whole_warp(lanes, "ldmatrix");
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    auto* target = static_cast<uint16_t*>(static_cast<Fragments*>(lanes[lane])->c);
    for (unsigned i = 0; i < 8; ++i) {
      unsigned matrix = i / 2, row = lane / 4, column = lane % 4 * 2 + i % 2;
      if (transposed) std::swap(row, column);
      auto* rows = static_cast<Fragments*>(lanes[matrix * 8 + row]);
      target[i] = static_cast<const uint16_t*>(rows->a)[column];
    }
  }
}

}  // namespace emulation

__device__ inline void undense_mma_f16(float* c, const unsigned* a, const unsigned* b,
                                       int line = __builtin_LINE()) {
  emulation::multiply(emulation::multiply_fragments<__half, float, 2, emulation::widen_f16>, c, a,
                      b, line);
}

__device__ inline void undense_mma_bf16(float* c, const unsigned* a, const unsigned* b,
                                        int line = __builtin_LINE()) {
  emulation::multiply(emulation::multiply_fragments<__nv_bfloat16, float, 2, emulation::widen_bf16>,
                      c, a, b, line);
}

__device__ inline void undense_mma_f32(float* c, const unsigned* a, const unsigned* b,
                                       int line = __builtin_LINE()) {
  emulation::multiply(emulation::multiply_fragments<float, float, 2, emulation::widen_f32>, c, a, b,
                      line);
}

__device__ inline void undense_ldmatrix_x4(unsigned* r, const void* row,
                                           int line = __builtin_LINE()) {
  emulation::require_aligned(row, "ldmatrix");
  emulation::multiply(emulation::load_matrices<false>, r, row, nullptr, line);
}

__device__ inline void undense_ldmatrix_x4_trans(unsigned* r, const void* row,
                                                 int line = __builtin_LINE()) {
  emulation::require_aligned(row, "ldmatrix");
  emulation::multiply(emulation::load_matrices<true>, r, row, nullptr, line);
}

__device__ inline void undense_copy_async(void* shared, const void* global, int bytes) {
  emulation::require_aligned(shared, "an asynchronous copy");
  emulation::require_aligned(global, "an asynchronous copy");
  if (bytes != 0 && bytes != 16) {
    emulation::fail(CUDA_ERROR_INVALID_VALUE, "an asynchronous copy of %d bytes", bytes);
  }
  emulation::copy_later(shared, global, bytes, 16);
}

__device__ inline void undense_copy_async_4(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 4 || reinterpret_cast<uintptr_t>(global) % 4) {
    emulation::fail(CUDA_ERROR_MISALIGNED_ADDRESS, "a misaligned asynchronous copy of 4 bytes");
  }
  if (bytes != 0 && bytes != 4) {
    emulation::fail(CUDA_ERROR_INVALID_VALUE, "an asynchronous copy of %d bytes", bytes);
  }
  emulation::copy_later(shared, global, bytes, 4);
}

__device__ inline void undense_copy_commit() { emulation::commit_copies(); }

__device__ inline void undense_copy_wait(int pending) {
  emulation::make_copies(unsigned(pending));
}

__device__ inline float undense_exp2(float x) { return exp2f(x); }

__device__ inline unsigned undense_shared_offset(const void* shared) {
  return emulation::shared_offset(shared);
}

__device__ inline void undense_fence_proxy_async() { emulation::publish_shared(); }

__device__ inline void undense_wgmma_fence(int line = __builtin_LINE()) {
  emulation::order_registers(line);
}

__device__ inline void undense_wgmma_commit(int line = __builtin_LINE()) {
  emulation::commit_products(line);
}

__device__ inline void undense_wgmma_wait_3(int line = __builtin_LINE()) {
  emulation::finish_products(3, line);
}

__device__ inline void undense_wgmma_finish(float*, int, int line = __builtin_LINE()) {
  emulation::finish_products(0, line);
}

__device__ inline void undense_wgmma_f16(float* sums, const unsigned* a,
                                         unsigned long long descriptor,
                                         int line = __builtin_LINE()) {
  constexpr auto widen = emulation::widen_bits<__half, emulation::widen_f16>;
  emulation::multiply_later(sums, a, descriptor, widen, line);
}

__device__ inline void undense_wgmma_bf16(float* sums, const unsigned* a,
                                          unsigned long long descriptor,
                                          int line = __builtin_LINE()) {
  constexpr auto widen = emulation::widen_bits<__nv_bfloat16, emulation::widen_bf16>;
  emulation::multiply_later(sums, a, descriptor, widen, line);
}
