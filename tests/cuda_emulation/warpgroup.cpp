// wgmma by the PTX instruction set: descriptors, swizzles, fragments, and what orders it.

#include "warpgroup.h"

#include <cstring>
#include <cuda.h>
#include <map>
#include <vector>

namespace emulation {
namespace {

constexpr unsigned depth = 16;
constexpr unsigned dynamic_begin = 1024 + 16;  // the first kilobyte is the system's

using Tile = std::vector<uint16_t>;  // B, [column][k]

// A product that a thread has begun.
struct Product {
  float* sums;
  const unsigned* a;
  unsigned a_given[4];
  float result[product_sums];
  uint64_t descriptor;
  Tile tile;  // of a warpgroup's first thread
  unsigned group;
};

struct Operands {
  bool ordered = false;  // by a first wgmma.fence
  unsigned groups = 0;
  std::vector<Product> begun;
  std::map<const void*, std::vector<unsigned>> at_fence;  // registers that products had before
};

// What a thread gives to the product of its warpgroup.
struct Part {
  const unsigned* a;
  uint64_t descriptor;
  Widen widen;
  float* result;
  Tile* tile;
};

Operands operands[most_threads];
// Shared memory as the asynchronous proxy sees it, and who has stored a word that it does not see.
std::vector<unsigned> published;
std::vector<uint16_t> writer;

unsigned decoded(uint64_t descriptor, unsigned lowest) {
  return unsigned(descriptor >> lowest & 0x3FFF) << 4;
}

// Where the element (column, k) of B lies in dynamic memory, stored K-major: with the "128-byte
// swizzle" rows have 128 bytes, eight of them are the stride apart from the next eight, and 16-byte
// units are exchanged by the row within a kilobyte.
unsigned place(uint64_t descriptor, unsigned column, unsigned k) {
  unsigned start = decoded(descriptor, 0), stride = decoded(descriptor, 32);
  unsigned offset = start + column / 8 * stride + column % 8 * 128 + k * 2;
  offset ^= (offset >> 7 & 7) << 4;
  offset -= dynamic_begin;
  if (offset + 2 > dynamic_size) {
    fail(CUDA_ERROR_ILLEGAL_ADDRESS, "wgmma reads beyond the shared memory, at byte %u of %zu",
         offset, dynamic_size);
  }
  return offset;
}

void require_published(unsigned offset) {
  if (writer[offset / 4] ||
      memcmp(dynamic_shared + offset, reinterpret_cast<char*>(published.data()) + offset, 2)) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "wgmma reads byte %u of shared memory, which was stored without a fence.proxy.async of "
         "its thread behind it",
         offset);
  }
}

void require_known_layout(uint64_t descriptor) {
  unsigned swizzle = unsigned(descriptor >> 62), base = unsigned(descriptor >> 49 & 7);
  if (swizzle != 1 || base != 0) {
    fail(CUDA_ERROR_INVALID_VALUE, "wgmma with swizzle mode %u and base offset %u is not emulated",
         swizzle, base);
  }
}

Tile read_tile(uint64_t descriptor) {
  Tile tile(product_columns * depth);
  for (unsigned i = 0; i < tile.size(); ++i) {
    memcpy(&tile[i], dynamic_shared + place(descriptor, i / depth, i % depth), sizeof tile[i]);
  }
  return tile;
}

unsigned row_of(unsigned thread, unsigned side) {
  return thread / warp_size * 16 + thread % warp_size / 4 + 8 * side;
}

__attribute__((optimize("O3"))) void multiply_warpgroup(void* const* lanes) {
  auto part = [lanes](unsigned thread) { return static_cast<Part*>(lanes[thread]); };
  uint64_t descriptor = part(0)->descriptor;
  for (unsigned thread = 1; thread < warpgroup_size; ++thread) {
    if (part(thread)->descriptor != descriptor) {
      fail(CUDA_ERROR_LAUNCH_FAILED, "wgmma with another descriptor in thread %u of its warpgroup",
           thread);
    }
  }
  require_known_layout(descriptor);
  Widen widen = part(0)->widen;
  static float a[64][depth], b[depth][product_columns];
  for (unsigned i = 0; i < product_columns * depth; ++i) {
    require_published(place(descriptor, i / depth, i % depth));
  }
  Tile tile = read_tile(descriptor);
  for (unsigned i = 0; i < tile.size(); ++i) b[i % depth][i / depth] = widen(tile[i]);
  for (unsigned thread = 0; thread < warpgroup_size; ++thread) {
    for (unsigned i = 0; i < 8; ++i) {
      unsigned k = thread % 4 * 2 + i % 2 + i / 4 * 8;
      a[row_of(thread, i / 2 % 2)][k] = widen(uint16_t(part(thread)->a[i / 2] >> 16 * (i % 2)));
    }
  }
  for (unsigned thread = 0; thread < warpgroup_size; ++thread) {
    float* result = part(thread)->result;
    for (unsigned i = 0; i < product_sums; ++i) {
      unsigned row = row_of(thread, i / 2 % 2), column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      for (unsigned k = 0; k < depth; ++k) result[i] += a[row][k] * b[k][column];
    }
  }
  *part(0)->tile = std::move(tile);
}

Operands& own() { return operands[current->number]; }

const Product* last_into(const float* sums) {
  auto& begun = own().begun;
  for (auto product = begun.rbegin(); product != begun.rend(); ++product) {
    if (product->sums == sums) return &*product;
  }
  return nullptr;
}

void require_poison(const float* sums) {
  auto* bytes = reinterpret_cast<const unsigned char*>(sums);
  for (unsigned i = 0; i < product_sums * sizeof(float); ++i) {
    if (bytes[i] != poison) {
      fail(CUDA_ERROR_LAUNCH_FAILED, "the sums of a wgmma were stored to before wgmma.wait_group");
    }
  }
}

// Registers that a product reads must not have been stored to since the last fence.
void require_ordered(const void* registers, unsigned words, const char* what) {
  auto& known = own().at_fence;
  auto found = known.find(registers);
  auto* given = static_cast<const unsigned*>(registers);
  if (found == known.end()) {
    known[registers].assign(given, given + words);
  } else if (memcmp(found->second.data(), given, words * sizeof(unsigned))) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "%s of a wgmma were stored to behind the last wgmma.fence", what);
  }
}

void finish(const Product& product) {
  if (memcmp(product.a, product.a_given, sizeof product.a_given)) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "operands of a wgmma were stored to before wgmma.wait_group");
  }
  if (!product.tile.empty() && product.tile != read_tile(product.descriptor)) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "shared memory that a wgmma reads was stored to before wgmma.wait_group");
  }
  require_poison(product.sums);
}

}  // namespace

void order_registers(int line) {
  warp_collective(~0u, nullptr, nullptr, line);
  own().ordered = true;
  for (auto& [registers, words] : own().at_fence) {
    memcpy(words.data(), registers, words.size() * sizeof(unsigned));
  }
}

void multiply_later(float* sums, const unsigned* a, uint64_t descriptor, Widen widen, int line) {
  if (!own().ordered) fail(CUDA_ERROR_LAUNCH_FAILED, "wgmma before any wgmma.fence");
  require_ordered(a, 4, "operands");
  Product product{sums, a, {}, {}, descriptor, {}, own().groups};
  memcpy(product.a_given, a, sizeof product.a_given);
  if (const Product* before = last_into(sums)) {
    require_poison(sums);
    memcpy(product.result, before->result, sizeof product.result);
  } else {
    require_ordered(sums, product_sums, "sums");
    memcpy(product.result, sums, sizeof product.result);
  }
  Part part{a, descriptor, widen, product.result, &product.tile};
  warpgroup_collective(&part, multiply_warpgroup, line);
  memset(static_cast<void*>(sums), poison, sizeof product.result);
  own().begun.push_back(std::move(product));
}

void commit_products(int line) {
  warp_collective(~0u, nullptr, nullptr, line);
  ++own().groups;
}

void finish_products(unsigned pending_groups, int line) {
  warp_collective(~0u, nullptr, nullptr, line);
  auto& begun = own().begun;
  while (!begun.empty() && begun.front().group + pending_groups < own().groups) {
    Product product = std::move(begun.front());
    begun.erase(begun.begin());
    finish(product);
    if (!last_into(product.sums)) {
      memcpy(product.sums, product.result, sizeof product.result);
    }
  }
}

void publish_shared() {
  uint16_t self = uint16_t(current->number + 1);
  for (size_t word = 0; word < published.size(); ++word) {
    if (writer[word] && writer[word] != self) continue;
    memcpy(&published[word], dynamic_shared + 4 * word, sizeof(unsigned));
    writer[word] = 0;
  }
}

unsigned shared_offset(const void* address) {
  return unsigned(static_cast<const unsigned char*>(address) - dynamic_shared) + dynamic_begin;
}

void forget_products() {
  unsigned threads = block_extent.x * block_extent.y * block_extent.z;
  for (unsigned thread = 0; thread < threads; ++thread) operands[thread] = {};
  published.assign(dynamic_size / 4, ~0u);
  writer.assign(dynamic_size / 4, 0);
}

void written_by_generic_proxy(const void* address, size_t size) {
  size_t first = static_cast<const unsigned char*>(address) - dynamic_shared;
  for (size_t byte = first; byte < first + size && byte / 4 < writer.size(); byte += 4) {
    writer[byte / 4] = uint16_t(current->number + 1);
  }
}

void require_no_products() {
  if (!own().begun.empty()) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "ends before its wgmma: a wgmma.wait_group 0 is missing");
  }
}

}  // namespace emulation
