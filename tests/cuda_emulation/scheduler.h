// The threads of one block: what a kernel's image calls, and the driver provides.
#pragma once

#include <cstddef>
#include <vector_types.h>

namespace emulation {

constexpr unsigned warp_size = 32;
constexpr unsigned warpgroup_size = 4 * warp_size;
constexpr unsigned most_threads = 1024;
// Every byte of memory that no thread has written: NaN in each floating type, -1 in integers.
constexpr unsigned char poison = 0xFF;

// A group of asynchronous copies of one thread, still to be made.
struct Copy {
  void* target;
  const void* source;
  int bytes;  // of the source; zeros fill the rest
  int size;   // of the target
  unsigned group;
};

struct Thread {
  uint3 index;
  unsigned number;  // within the block
  unsigned groups;  // of asynchronous copies committed so far
};

// One kernel of an image; the image's translation to host code writes it.
struct Kernel {
  const char* name;
  void (*run)(void** arguments);  // the kernel for the current thread
  const size_t* argument_sizes;
  size_t argument_count;
  char* shared_begin;  // its __shared__ variables
  char* shared_end;
  unsigned most_threads;  // __launch_bounds__
};

extern Thread* current;
extern uint3 block_index;
extern dim3 block_extent;
extern dim3 grid_extent;
extern unsigned char* dynamic_shared;
extern size_t dynamic_size;

// What a warp or a warpgroup does together: called once, with what each lane gave, null for lanes
// not in it.
using Collective = void (*)(void* const* lanes);

// The source's line stands for the barrier: threads that meet at two of them have diverged.
void block_barrier(int line);
void warp_collective(unsigned mask, void* lane, Collective operation, int line);
void warpgroup_collective(void* lane, Collective operation, int line);
unsigned active_lanes(int line);

void copy_later(void* target, const void* source, int bytes, int size);
void commit_copies();
void make_copies(unsigned pending_groups);

// Ends the launch with an error of the driver's (a CUresult).
[[noreturn]] void fail(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulation
