// Device functions that the generated kernels call by name.
//
// Those that need inline PTX stand in intrinsics.cuh; a host emulation brings twins of them, and
// uses everything here as it is.
//
// A fragment is what a lane holds of 16 outputs by 16 inputs, or 16 rows of x by 16 inputs: with
// lane = 4 g + t it is row g, inputs k .. k+3, then row g + 8, the same inputs, where a chunk of 64
// inputs is divided so that lane t has 16 neighbours. mma.sync sums over inputs in any order, as
// long as both operands have them in the same one; so every fragment comes by 16-byte loads.
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

static __device__ __forceinline__ void undense_copy_16(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

// The first operand of mma.m16n8k16 wants pairs of inputs of both rows in turn.
static __device__ __forceinline__ void undense_first_operand(unsigned* a, const unsigned* fragment,
                                                             int words) {
  const int pair = words / 4;
  for (int i = 0; i < pair; ++i) {
    a[i] = fragment[i];
    a[pair + i] = fragment[2 * pair + i];
    a[2 * pair + i] = fragment[pair + i];
    a[3 * pair + i] = fragment[3 * pair + i];
  }
}

// Two stored codes, those of neighbouring inputs, in the halves of a word. `bits` words of a lane
// hold its 32 codes of 4 tiles; pair 0 and 1 are of row g, pair 2 and 3 of row g + 8.
static __device__ __forceinline__ unsigned undense_pair(const unsigned* words, int bits, int tile,
                                                        int pair) {
  const unsigned above = 0x00010001u;
  switch (bits) {
    case 2:
      return (words[tile >> 1] >> (8 * (tile & 1) + 2 * pair)) & 0x00030003u;
    case 3:
      return ((words[tile >> 1] >> (8 * (tile & 1) + 2 * pair)) & 0x00030003u) |
             (((words[2] >> (4 * tile + pair)) & above) << 2);
    case 4:
      return (words[tile] >> (4 * pair)) & 0x000f000fu;
    case 5:
      return ((words[tile] >> (4 * pair)) & 0x000f000fu) |
             (((words[4] >> (4 * tile + pair)) & above) << 4);
    default:
      return (words[2 * tile + (pair >> 1)] >> (8 * (pair & 1))) & 0x00ff00ffu;
  }
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

// The fragment of a tile, `code - offset` exactly: below 1024 a float16 with the bits 0x6400 over
// a code is 1024 + code.
static __device__ __forceinline__ void undense_decode_f16(unsigned* fragment, const unsigned* words,
                                                          int bits, int tile, int offset) {
  const __half2 shift = __half2half2(__ushort_as_half(0x6400 + offset));
  for (int pair = 0; pair < 4; ++pair) {
    const unsigned raised = undense_pair(words, bits, tile, pair) | 0x64006400u;
    fragment[pair] = undense_word(__hsub2(undense_halves(raised), shift));
  }
}

// The same in bfloat16, where 0x4300 over seven bits is 128 + code; eight bits go through float.
static __device__ __forceinline__ void undense_decode_bf16(unsigned* fragment,
                                                           const unsigned* words, int bits,
                                                           int tile, int offset) {
  const __nv_bfloat162 shift = __bfloat162bfloat162(__ushort_as_bfloat16(0x4300 + offset));
  for (int pair = 0; pair < 4; ++pair) {
    const unsigned codes = undense_pair(words, bits, tile, pair);
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
    const unsigned codes = undense_pair(words, bits, tile, pair);
    fragment[2 * pair] =
        __float_as_uint(static_cast<float>(static_cast<int>(codes & 0xffffu) - offset));
    fragment[2 * pair + 1] =
        __float_as_uint(static_cast<float>(static_cast<int>(codes >> 16) - offset));
  }
}

// sum += fragment * scales, with a scale of row g and one of row g + 8.
static __device__ __forceinline__ void undense_scaled_f16(unsigned* sum, const unsigned* fragment,
                                                          float low, float high) {
  const __half2 scales[2] = {__float2half2_rn(low), __float2half2_rn(high)};
  for (int pair = 0; pair < 4; ++pair) {
    sum[pair] = undense_word(
        __hfma2(undense_halves(fragment[pair]), scales[pair >> 1], undense_halves(sum[pair])));
  }
}

static __device__ __forceinline__ void undense_scaled_bf16(unsigned* sum, const unsigned* fragment,
                                                           float low, float high) {
  const __nv_bfloat162 scales[2] = {__float2bfloat162_rn(low), __float2bfloat162_rn(high)};
  for (int pair = 0; pair < 4; ++pair) {
    sum[pair] = undense_word(
        __hfma2(undense_bfloats(fragment[pair]), scales[pair >> 1], undense_bfloats(sum[pair])));
  }
}

static __device__ __forceinline__ void undense_scaled_f32(unsigned* sum, const unsigned* fragment,
                                                          float low, float high) {
  for (int value = 0; value < 8; ++value) {
    sum[value] = __float_as_uint(fmaf(__uint_as_float(fragment[value]), value < 4 ? low : high,
                                      __uint_as_float(sum[value])));
  }
}

// Eight neighbouring outputs of a row: the sums of four instructions, two of each.
static __device__ __forceinline__ void undense_store_row_f16(unsigned* to, const float* sums,
                                                             float unit) {
  alignas(16) unsigned words[4];
  for (int i = 0; i < 4; ++i) {
    words[i] = undense_word(__floats2half2_rn(sums[4 * i] * unit, sums[4 * i + 1] * unit));
  }
  undense_copy_16(to, words);
}

static __device__ __forceinline__ void undense_store_row_bf16(unsigned* to, const float* sums,
                                                              float unit) {
  alignas(16) unsigned words[4];
  for (int i = 0; i < 4; ++i) {
    words[i] = undense_word(__floats2bfloat162_rn(sums[4 * i] * unit, sums[4 * i + 1] * unit));
  }
  undense_copy_16(to, words);
}

static __device__ __forceinline__ void undense_store_row_f32(unsigned* to, const float* sums,
                                                             float unit) {
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __float_as_uint(sums[4 * i] * unit);
    to[2 * i + 1] = __float_as_uint(sums[4 * i + 1] * unit);
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

// Value `column` of four rows, of which a lane has `words` words each, as a second operand.
static __device__ __forceinline__ void undense_column_f16(unsigned* b, const unsigned* rows,
                                                          int words, int column) {
  const int word = column / 2;
  const unsigned halves = column % 2 ? 0x7632u : 0x5410u;
  b[0] = __byte_perm(rows[word], rows[words + word], halves);
  b[1] = __byte_perm(rows[2 * words + word], rows[3 * words + word], halves);
}

static __device__ __forceinline__ void undense_column_bf16(unsigned* b, const unsigned* rows,
                                                           int words, int column) {
  undense_column_f16(b, rows, words, column);
}

static __device__ __forceinline__ void undense_column_f32(unsigned* b, const unsigned* rows,
                                                          int words, int column) {
  for (int i = 0; i < 4; ++i) b[i] = rows[i * words + column];
}
