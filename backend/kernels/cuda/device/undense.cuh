// Device functions that the generated kernels call by name.
//
// What only inline PTX can do stands in intrinsics.cuh; a host emulation brings twins of that, and
// uses everything here, with plain C++ in the one place where PTX saves an instruction.
//
// A fragment is what a lane holds of 16 outputs by 16 inputs: with lane = 4 g + t pairs of inputs
// of outputs g and g + 8 in turn, where a chunk of 64 inputs is divided so that lane t has 16
// neighbours. mma.sync sums over inputs in any order, as long as both operands have them in the
// same one; so the first operand and the second come by 16-byte loads, each as it is wanted.
#pragma once

static __device__ __forceinline__ void undense_load_4(unsigned* words, const void* from) {
  words[0] = *static_cast<const unsigned*>(from);
}

static __device__ __forceinline__ void undense_load_8(unsigned* words, const void* from) {
  const uint2 found = *static_cast<const uint2*>(from);
  words[0] = found.x;
  words[1] = found.y;
}

static __device__ __forceinline__ void undense_load_16(unsigned* words, const void* from) {
  const uint4 found = *static_cast<const uint4*>(from);
  words[0] = found.x;
  words[1] = found.y;
  words[2] = found.z;
  words[3] = found.w;
}

static __device__ __forceinline__ void undense_store_4(void* to, const unsigned* words) {
  *static_cast<unsigned*>(to) = words[0];
}

static __device__ __forceinline__ void undense_store_8(void* to, const unsigned* words) {
  *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}

static __device__ __forceinline__ void undense_copy_16(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

// (value & mask) | bits in one instruction: with two constants the compiler takes two.
static __device__ __forceinline__ unsigned undense_and_or(unsigned value, unsigned mask,
                                                          unsigned bits) {
#ifdef __CUDA_ARCH__
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
  return result;
#else
  return (value & mask) | bits;
#endif
}

// Two stored codes, those of neighbouring inputs, in the halves of a word, over the bits of
// `above`. `bits` words of a lane hold its 32 codes of 4 tiles; even pairs are of output g, odd
// ones of output g + 8. Codes of 4 bits stay where they are in odd pairs, 16 times as large.
static __device__ __forceinline__ unsigned undense_pair(const unsigned* words, int bits, int tile,
                                                        int pair, unsigned above) {
  const unsigned one = 0x00010001u;
  switch (bits) {
    case 2:
      return undense_and_or(words[tile >> 1] >> (8 * (tile & 1) + 2 * pair), 3 * one, above);
    case 3:
      return undense_and_or(words[tile >> 1] >> (8 * (tile & 1) + 2 * pair), 3 * one,
                            undense_and_or(words[2] >> (4 * tile + pair) << 2, 4 * one, above));
    case 4:
      return undense_and_or(words[tile] >> (8 * (pair >> 1)), pair & 1 ? 0xf0 * one : 0xf * one,
                            above);
    case 5:
      return undense_and_or(words[tile] >> (4 * pair), 0xf * one,
                            undense_and_or(words[4] >> (4 * tile + pair) << 4, 0x10 * one, above));
    default:
      return undense_and_or(words[2 * tile + (pair >> 1)] >> (8 * (pair & 1)), 0xff * one, above);
  }
}

// Whether undense_pair has left codes 16 times as large.
static __device__ __forceinline__ bool undense_raised(int bits, int pair) {
  return bits == 4 && pair & 1;
}

static __device__ __forceinline__ unsigned undense_word(__half2 value) {
  return *reinterpret_cast<unsigned*>(&value);
}

static __device__ __forceinline__ unsigned undense_word(__nv_bfloat162 value) {
  return *reinterpret_cast<unsigned*>(&value);
}

static __device__ __forceinline__ __half2 undense_halves(unsigned word) {
  return *reinterpret_cast<__half2*>(&word);
}

static __device__ __forceinline__ __nv_bfloat162 undense_bfloats(unsigned word) {
  return *reinterpret_cast<__nv_bfloat162*>(&word);
}

// The fragment of a tile, `code - offset` exactly: a float16 with the bits 0x6400 over a code below
// 1024 is 1024 + code.
static __device__ __forceinline__ void undense_decode_f16(unsigned* fragment, const unsigned* words,
                                                          int bits, int tile, int offset) {
  const __half2 shift = __half2half2(__ushort_as_half(0x6400 + offset));
  const __half2 sixteenth = __float2half2_rn(0.0625f);
  const __half2 raised = __float2half2_rn(-64.0f - offset);
  for (int pair = 0; pair < 4; ++pair) {
    const __half2 value = undense_halves(undense_pair(words, bits, tile, pair, 0x64006400u));
    fragment[pair] = undense_word(undense_raised(bits, pair) ? __hfma2(value, sixteenth, raised)
                                                             : __hsub2(value, shift));
  }
}

// The same in bfloat16, where 0x4300 over seven bits is 128 + code; four bits 16 times as large
// have no room under it, and eight bits go through float.
static __device__ __forceinline__ void undense_decode_bf16(unsigned* fragment,
                                                           const unsigned* words, int bits,
                                                           int tile, int offset) {
  const __nv_bfloat162 shift = __bfloat162bfloat162(__ushort_as_bfloat16(0x4300 + offset));
  for (int pair = 0; pair < 4; ++pair) {
    unsigned codes = undense_pair(words, bits, tile, pair, 0);
    if (undense_raised(bits, pair)) codes >>= 4;
    if (bits == 8) {
      fragment[pair] = undense_word(
          __floats2bfloat162_rn(static_cast<float>(static_cast<int>(codes & 0xffffu) - offset),
                                static_cast<float>(static_cast<int>(codes >> 16) - offset)));
    } else {
      fragment[pair] = undense_word(__hsub2(undense_bfloats(codes | 0x43004300u), shift));
    }
  }
}

static __device__ __forceinline__ void undense_decode_f32(unsigned* fragment, const unsigned* words,
                                                          int bits, int tile, int offset) {
  for (int pair = 0; pair < 4; ++pair) {
    unsigned codes = undense_pair(words, bits, tile, pair, 0);
    if (undense_raised(bits, pair)) codes >>= 4;
    fragment[2 * pair] =
        __float_as_uint(static_cast<float>(static_cast<int>(codes & 0xffffu) - offset));
    fragment[2 * pair + 1] =
        __float_as_uint(static_cast<float>(static_cast<int>(codes >> 16) - offset));
  }
}

// sum += fragment * scales, with a scale of output g and one of output g + 8.
static __device__ __forceinline__ void undense_scaled_f16(unsigned* sum, const unsigned* fragment,
                                                          float low, float high) {
  const __half2 scales[2] = {__float2half2_rn(low), __float2half2_rn(high)};
  for (int pair = 0; pair < 4; ++pair) {
    sum[pair] = undense_word(
        __hfma2(undense_halves(fragment[pair]), scales[pair & 1], undense_halves(sum[pair])));
  }
}

static __device__ __forceinline__ void undense_scaled_bf16(unsigned* sum, const unsigned* fragment,
                                                           float low, float high) {
  const __nv_bfloat162 scales[2] = {__float2bfloat162_rn(low), __float2bfloat162_rn(high)};
  for (int pair = 0; pair < 4; ++pair) {
    sum[pair] = undense_word(
        __hfma2(undense_bfloats(fragment[pair]), scales[pair & 1], undense_bfloats(sum[pair])));
  }
}

static __device__ __forceinline__ void undense_scaled_f32(unsigned* sum, const unsigned* fragment,
                                                          float low, float high) {
  for (int value = 0; value < 8; ++value) {
    sum[value] = __float_as_uint(fmaf(__uint_as_float(fragment[value]), value & 2 ? high : low,
                                      __uint_as_float(sum[value])));
  }
}

// What one instruction leaves for two outputs and two rows, times a unit of output g and one of
// output g + 8, stored with outputs side by side. Two sums are rounded at once; where each was
// alone, ptxas let the products of wgmma wait in turn.
static __device__ __forceinline__ void undense_store_sums_f16(void* to, int first,
                                                              const float* sums, int row_values,
                                                              float low, float high) {
  __half* values = static_cast<__half*>(to) + first;
  for (int i = 0; i < 2; ++i) {
    const __half2 both = __floats2half2_rn(sums[i] * low, sums[i + 2] * high);
    values[i * row_values] = __low2half(both);
    values[i * row_values + 8] = __high2half(both);
  }
}

static __device__ __forceinline__ void undense_store_sums_bf16(void* to, int first,
                                                               const float* sums, int row_values,
                                                               float low, float high) {
  __nv_bfloat16* values = static_cast<__nv_bfloat16*>(to) + first;
  for (int i = 0; i < 2; ++i) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(sums[i] * low, sums[i + 2] * high);
    values[i * row_values] = __low2bfloat16(both);
    values[i * row_values + 8] = __high2bfloat16(both);
  }
}

static __device__ __forceinline__ void undense_store_sums_f32(void* to, int first,
                                                              const float* sums, int row_values,
                                                              float low, float high) {
  float* values = static_cast<float*>(to) + first;
  for (int i = 0; i < 4; ++i) {
    values[i % 2 * row_values + i / 2 * 8] = sums[i] * (i / 2 ? high : low);
  }
}

// The scores of 16 rows and 16 keys, which two instructions have left, as a first operand.
static __device__ __forceinline__ void undense_scores_f16(unsigned* a, const float* scores) {
  for (int i = 0; i < 4; ++i) {
    a[i] = undense_word(__floats2half2_rn(scores[2 * i], scores[2 * i + 1]));
  }
}

static __device__ __forceinline__ void undense_scores_bf16(unsigned* a, const float* scores) {
  for (int i = 0; i < 4; ++i) {
    a[i] = undense_word(__floats2bfloat162_rn(scores[2 * i], scores[2 * i + 1]));
  }
}

static __device__ __forceinline__ void undense_scores_f32(unsigned* a, const float* scores) {
  for (int i = 0; i < 8; ++i) a[i] = __float_as_uint(scores[i]);
}

// What lies from here to the next multiple of 1024 in shared memory, in words.
static __device__ __forceinline__ int undense_words_to_kilobyte(const void* shared) {
  return static_cast<int>(-undense_shared_offset(shared) % 1024u / 4u);
}

// The descriptor of rows of 128 bytes as wgmma's second operand (PTX ISA, matrix descriptor):
// 16-byte units exchanged by the row, eight rows 1024 bytes from the next eight.
static __device__ __forceinline__ unsigned long long undense_descriptor(const void* rows) {
  const unsigned long long swizzled_by_128_bytes = 1, stride = 1024 >> 4;
  return (undense_shared_offset(rows) & 0x3ffffu) >> 4 | stride << 32 | swizzled_by_128_bytes << 62;
}

// sums += A B for 64 outputs, 128 rows of x in shared memory, and 16 inputs.
static __device__ __forceinline__ void undense_multiply_rows_f16(float* sums, const unsigned* a,
                                                                 const void* rows) {
  undense_wgmma_f16(sums, a, undense_descriptor(rows));
}

static __device__ __forceinline__ void undense_multiply_rows_bf16(float* sums, const unsigned* a,
                                                                  const void* rows) {
  undense_wgmma_bf16(sums, a, undense_descriptor(rows));
}
