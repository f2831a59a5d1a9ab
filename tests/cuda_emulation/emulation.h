// CUDA C++ as TVM generates it, for a host compiler: what the language and its headers give a
// kernel beyond C++. Where CUDA's own headers have a host form of a function, that one is used.
#pragma once

#include "scheduler.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <type_traits>
#include <vector_functions.h>
#include <vector_types.h>

// --- The language ---

#undef __device__
#undef __host__
#undef __global__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __restrict__
#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
// Static memory is as much a block's own as there is one block at a time.
#define __shared__ static __attribute__((section(EMULATED_SHARED_SECTION)))
// TVM's preamble defines itself what older toolkits lack.
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_extent)
#define gridDim (emulation::grid_extent)
#define warpSize 32

#define EMULATED_INLINE static inline __attribute__((unused))

// --- Barriers, votes and shuffles ---

EMULATED_INLINE void __syncthreads(int line = __builtin_LINE()) { emulation::block_barrier(line); }

EMULATED_INLINE void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulation::warp_collective(mask, nullptr, nullptr, line);
}

EMULATED_INLINE unsigned __activemask(int line = __builtin_LINE()) {
  return emulation::active_lanes(line);
}

namespace emulation {

// Makes the lanes that came the same way go on together.
inline void meet(int line = __builtin_LINE()) { __syncwarp(__activemask(line), line); }

}  // namespace emulation

EMULATED_INLINE void __threadfence() {}
EMULATED_INLINE void __threadfence_block() {}

namespace emulation {

// One lane's part in a shuffle or a vote.
struct Exchange {
  uint64_t given;
  uint64_t taken;
  unsigned source;  // a lane
};

inline void exchange(void* const* lanes) {
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (!lanes[lane]) continue;
    auto* self = static_cast<Exchange*>(lanes[lane]);
    auto* source = static_cast<Exchange*>(lanes[self->source]);
    if (source) {
      self->taken = source->given;
    } else {  // a lane that takes no part has nothing defined to give
      memset(&self->taken, poison, sizeof self->taken);
    }
  }
}

inline unsigned current_lane() { return current->number % warp_size; }

template <typename Value>
Value shuffle(unsigned mask, Value value, unsigned source, int line) {
  static_assert(sizeof(Value) <= sizeof(uint64_t));
  Exchange lane{0, 0, source};
  memcpy(&lane.given, &value, sizeof value);
  warp_collective(mask, &lane, exchange, line);
  memcpy(static_cast<void*>(&value), &lane.taken, sizeof value);
  return value;
}

inline void ballot(void* const* lanes) {
  uint64_t votes = 0;
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (lanes[lane] && static_cast<Exchange*>(lanes[lane])->given) votes |= 1u << lane;
  }
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (lanes[lane]) static_cast<Exchange*>(lanes[lane])->taken = votes;
  }
}

}  // namespace emulation

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32,
                  int line = __builtin_LINE()) {
  unsigned lane = emulation::current_lane(), segment = lane & ~(width - 1u);
  return emulation::shuffle(mask, value, segment | (source & (width - 1)), line);
}

template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32,
                     int line = __builtin_LINE()) {
  unsigned lane = emulation::current_lane(), within = lane & (width - 1);
  return emulation::shuffle(mask, value, within >= delta ? lane - delta : lane, line);
}

template <typename Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32,
                       int line = __builtin_LINE()) {
  unsigned lane = emulation::current_lane(), within = lane & (width - 1);
  return emulation::shuffle(mask, value, within + delta < unsigned(width) ? lane + delta : lane,
                            line);
}

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask, int width = 32,
                      int line = __builtin_LINE()) {
  unsigned lane = emulation::current_lane(), source = lane ^ lane_mask;
  // Earlier segments may be read, later ones not.
  return emulation::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, line);
}

EMULATED_INLINE unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  emulation::Exchange lane{predicate != 0, 0, 0};
  emulation::warp_collective(mask, &lane, emulation::ballot, line);
  return unsigned(lane.taken);
}

EMULATED_INLINE int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}

EMULATED_INLINE int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate == 0, line) == 0;
}

// --- Memory ---

template <typename Value>
Value __ldg(const Value* address) {
  return *address;
}
template <typename Value>
Value __ldcs(const Value* address) {
  return *address;
}
template <typename Value>
Value __ldcg(const Value* address) {
  return *address;
}
template <typename Value>
void __stcs(Value* address, Value value) {
  *address = value;
}

// One thread runs at a time, and gives way only at barriers.
template <typename Value>
Value atomicAdd(Value* address, Value value) {
  Value before = *address;
  *address = before + value;
  return before;
}
template <typename Value>
Value atomicMax(Value* address, Value value) {
  Value before = *address;
  if (before < value) *address = value;
  return before;
}

// --- Integers ---

EMULATED_INLINE int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return c;
}
EMULATED_INLINE unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += unsigned(uint8_t(a >> 8 * i)) * uint8_t(b >> 8 * i);
  return c;
}
EMULATED_INLINE int __dp4a(unsigned a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int(uint8_t(a >> 8 * i)) * int8_t(b >> 8 * i);
  return c;
}
EMULATED_INLINE int __dp4a(int a, unsigned b, int c) { return __dp4a(b, a, c); }

EMULATED_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned nibble = selector >> 4 * i & 0xF;
    unsigned byte = unsigned(bytes >> 8 * (nibble & 7)) & 0xFF;
    if (nibble & 8) byte = byte & 0x80 ? 0xFF : 0;  // its sign, as prmt has it
    result |= byte << 8 * i;
  }
  return result;
}

EMULATED_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMULATED_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMULATED_INLINE int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
EMULATED_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMULATED_INLINE unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}
EMULATED_INLINE int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
EMULATED_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned(uint64_t(a) * b >> 32);
}
EMULATED_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
EMULATED_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}

// --- Floats ---

EMULATED_INLINE int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
EMULATED_INLINE unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
EMULATED_INLINE float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
EMULATED_INLINE float __uint_as_float(unsigned bits) { return __int_as_float(int(bits)); }

EMULATED_INLINE int __float2int_rn(float x) { return int(nearbyintf(x)); }
EMULATED_INLINE int __float2int_rz(float x) { return int(x); }
EMULATED_INLINE int __float2int_rd(float x) { return int(floorf(x)); }
EMULATED_INLINE int __float2int_ru(float x) { return int(ceilf(x)); }
EMULATED_INLINE float __int2float_rn(int x) { return float(x); }
EMULATED_INLINE float __uint2float_rn(unsigned x) { return float(x); }

// CUDA's fast forms; macros, as the host's mathematics library uses these names within.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __powf powf

EMULATED_INLINE float __fdividef(float x, float y) { return x / y; }
EMULATED_INLINE float __frcp_rn(float x) { return 1.0f / x; }
EMULATED_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
EMULATED_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
EMULATED_INLINE float __fadd_rn(float x, float y) { return x + y; }
EMULATED_INLINE float __fsub_rn(float x, float y) { return x - y; }
EMULATED_INLINE float __fmul_rn(float x, float y) { return x * y; }
EMULATED_INLINE float __fdiv_rn(float x, float y) { return x / y; }
EMULATED_INLINE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
EMULATED_INLINE float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
EMULATED_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMULATED_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
EMULATED_INLINE float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }

// CUDA's min and max of floats drop a NaN, as fmin and fmax do.
EMULATED_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMULATED_INLINE float min(float a, float b) { return fminf(a, b); }
EMULATED_INLINE double max(double a, double b) { return fmax(a, b); }
EMULATED_INLINE double min(double a, double b) { return fmin(a, b); }
#define EMULATED_EXTREMES(Type)                                             \
  EMULATED_INLINE Type max(Type a, Type b) { return a < b ? b : a; }        \
  EMULATED_INLINE Type min(Type a, Type b) { return b < a ? b : a; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
#undef EMULATED_EXTREMES

// --- Halves: what cuda_fp16.h and cuda_bf16.h have for devices only ---

#define EMULATED_UNARY(name, expression)               \
  EMULATED_INLINE __half name(__half value) {          \
    float x = __half2float(value);                     \
    return __float2half_rn(expression);                \
  }                                                    \
  EMULATED_INLINE __nv_bfloat16 name(__nv_bfloat16 value) { \
    float x = __bfloat162float(value);                 \
    return __float2bfloat16_rn(expression);            \
  }
EMULATED_UNARY(hexp, expf(x))
EMULATED_UNARY(hexp2, exp2f(x))
EMULATED_UNARY(hexp10, exp10f(x))
EMULATED_UNARY(hlog, logf(x))
EMULATED_UNARY(hlog2, log2f(x))
EMULATED_UNARY(hlog10, log10f(x))
EMULATED_UNARY(hsqrt, sqrtf(x))
EMULATED_UNARY(hrsqrt, 1.0f / sqrtf(x))
EMULATED_UNARY(hrcp, 1.0f / x)
EMULATED_UNARY(hsin, sinf(x))
EMULATED_UNARY(hcos, cosf(x))
EMULATED_UNARY(htanh, tanhf(x))
EMULATED_UNARY(hfloor, floorf(x))
EMULATED_UNARY(hceil, ceilf(x))
EMULATED_UNARY(htrunc, truncf(x))
EMULATED_UNARY(hrint, rintf(x))
#undef EMULATED_UNARY

// TVM's preamble has these for bfloat16; for half it has them in its device pass only.
EMULATED_INLINE __half hpow(__half x, __half y) {
  return __float2half_rn(powf(__half2float(x), __half2float(y)));
}
EMULATED_INLINE __half htan(__half x) { return __float2half_rn(tanf(__half2float(x))); }
EMULATED_INLINE __half hatan(__half x) { return __float2half_rn(atanf(__half2float(x))); }
EMULATED_INLINE __half herf(__half x) { return __float2half_rn(erff(__half2float(x))); }

// Rounded once: the product of two halves is exact in double, and so near enough is the sum.
EMULATED_INLINE __half __hfma(__half a, __half b, __half c) {
  return __double2half(double(__half2float(a)) * double(__half2float(b)) +
                       double(__half2float(c)));
}
EMULATED_INLINE __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __double2bfloat16(double(__bfloat162float(a)) * double(__bfloat162float(b)) +
                           double(__bfloat162float(c)));
}
EMULATED_INLINE __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
EMULATED_INLINE __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
