// Runs the blocks of a grid one after another, each thread of a block as a fiber.

#include "scheduler.h"

#include "faults.h"
#include "launch.h"
#include "warpgroup.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <cuda.h>
#include <deque>
#include <mutex>
#include <random>
#include <sys/mman.h>
#include <vector>

namespace emulation {

Thread* current;
uint3 block_index;
dim3 block_extent;
dim3 grid_extent;
unsigned char* dynamic_shared;
size_t dynamic_size;

namespace {

// swapcontext asks the kernel for the signal mask twice a switch; this keeps what the calling
// convention says a function keeps, and is about a hundred times faster.
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
extern "C" void emulation_switch(void** from, void* to);

constexpr size_t page = 4096;
constexpr size_t stack_size = 256 << 10;

enum class State {
  ready,
  at_block_barrier,
  in_warp,
  in_warpgroup,
  asks_for_active_lanes,
  exited
};

struct Fiber : Thread {
  State state;
  void* stack_pointer;
  char* stack_top;
  unsigned mask;  // in_warp: the lanes it waits for; then the answer to active_lanes
  void* lane;     // in_warp, in_warpgroup: what it gives to the operation
  Collective operation;
  int line;
  std::deque<Copy> copies;
};

std::mutex device;  // one launch at a time
const Kernel* kernel;
void** arguments;
std::vector<Fiber> fibers;
std::vector<unsigned> order;  // in which threads run that could run at once
unsigned thread_count;
unsigned exited;
unsigned at_barrier;
int barrier_line;
Fiber* ready[most_threads + 1];  // a queue in a ring
unsigned first_ready, end_ready;
void* launcher;  // the stack pointer of run_block
int error;
std::string message;

Order chosen_order = Order::forward;
unsigned most_seconds = 120;
std::mt19937 shuffle;

void enqueue(Fiber& fiber) {
  fiber.state = State::ready;
  ready[end_ready] = &fiber;
  end_ready = end_ready == most_threads ? 0 : end_ready + 1;
}

void release_askers_for_active_lanes();

// Runs whatever thread is next; returns when this one is.
void yield() {
  if (first_ready == end_ready) release_askers_for_active_lanes();
  if (first_ready == end_ready) return_to_launcher();
  Fiber& before = static_cast<Fiber&>(*current);
  Fiber& next = *ready[first_ready];
  first_ready = first_ready == most_threads ? 0 : first_ready + 1;
  current = &next;
  if (&next != &before) emulation_switch(&before.stack_pointer, next.stack_pointer);
}

void run_thread() {
  kernel->run(arguments);
  require_no_products();
  static_cast<Fiber&>(*current).state = State::exited;
  ++exited;
  yield();
}

void shuffle_order() {
  if (chosen_order == Order::shuffled) {
    std::shuffle(order.begin(), order.end(), shuffle);
  }
}

void choose_order() {
  order.resize(thread_count);
  for (unsigned i = 0; i < thread_count; ++i) {
    order[i] = chosen_order == Order::backward ? thread_count - 1 - i : i;
  }
}

// The lanes of a thread's warp that the block has.
unsigned lanes_of(const Fiber& fiber) {
  unsigned count = std::min(warp_size, thread_count - fiber.number / warp_size * warp_size);
  return count == warp_size ? ~0u : (1u << count) - 1;
}

Fiber* warp_of(const Fiber& fiber) {
  return &fibers[fiber.number / warp_size * warp_size];
}

void enqueue_lanes(Fiber* warp, unsigned mask) {
  if (chosen_order == Order::shuffled) {
    unsigned lanes[warp_size], count = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
      if (mask >> lane & 1) lanes[count++] = lane;
    }
    std::shuffle(lanes, lanes + count, shuffle);
    for (unsigned i = 0; i < count; ++i) enqueue(warp[lanes[i]]);
    return;
  }
  for (unsigned i = 0; i < warp_size; ++i) {
    unsigned lane = chosen_order == Order::backward ? warp_size - 1 - i : i;
    if (mask >> lane & 1) enqueue(warp[lane]);
  }
}

// A real warp's lanes ask together once the others have gone another way: when all else waits.
void release_askers_for_active_lanes() {
  for (unsigned begin = 0; begin < thread_count; begin += warp_size) {
    Fiber* warp = &fibers[begin];
    unsigned lanes = lanes_of(*warp);
    unsigned asking = 0;
    int line = 0;
    for (unsigned lane = 0; lane < warp_size && lanes >> lane & 1; ++lane) {
      if (warp[lane].state != State::asks_for_active_lanes) continue;
      if (!asking) line = warp[lane].line;
      if (warp[lane].line == line) asking |= 1u << lane;
    }
    for (unsigned lane = 0; lane < warp_size; ++lane) {
      if (asking >> lane & 1) warp[lane].mask = asking;
    }
    if (asking) enqueue_lanes(warp, asking);
  }
}

std::string describe_deadlock() {
  unsigned blocked = 0, in_warp = 0, in_warpgroup = 0;
  int block_line = 0, warp_line = 0, warpgroup_line = 0;
  for (unsigned i = 0; i < thread_count; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.state == State::at_block_barrier) ++blocked, block_line = fiber.line;
    if (fiber.state == State::in_warp) ++in_warp, warp_line = fiber.line;
    if (fiber.state == State::in_warpgroup) ++in_warpgroup, warpgroup_line = fiber.line;
  }
  std::string text;
  auto tell = [&text](unsigned count, const char* where, int line) {
    if (!count) return;
    text += text.empty() ? "deadlock: " : ", ";
    text += std::to_string(count) + " threads wait " + where + " line " + std::to_string(line);
  };
  tell(blocked, "at __syncthreads of", block_line);
  tell(in_warp, "in their warp at", warp_line);
  tell(in_warpgroup, "in their warpgroup at", warpgroup_line);
  return text + " of " + std::to_string(thread_count) + " threads, and " +
         std::to_string(exited) + " have ended";
}

void prepare_fibers() {
  size_t ready_made = fibers.size();
  if (ready_made >= thread_count) return;
  fibers.resize(most_threads);
  for (size_t i = ready_made; i < most_threads; ++i) {
    void* memory = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<char*>(memory);
    char* end = begin + stack_size - page;
    // What reaches beyond the stack faults, at either end.
    mprotect(begin, page, PROT_NONE);
    mprotect(end, page, PROT_NONE);
    // Stacks that all begin at the same offset in a page would share a few cache sets.
    fibers[i].stack_top = end - i % 32 * 192;
  }
}

void run_block() {
  exited = at_barrier = first_ready = end_ready = 0;
  memset(kernel->shared_begin, poison, kernel->shared_end - kernel->shared_begin);
  forget_products();
  shuffle_order();
  for (unsigned i = 0; i < thread_count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.number = i;
    fiber.index = {i % block_extent.x, i / block_extent.x % block_extent.y,
                   i / block_extent.x / block_extent.y};
    fiber.groups = 0;
    fiber.copies.clear();
    auto* stack = reinterpret_cast<void**>(fiber.stack_top) - 2;
    *stack = reinterpret_cast<void*>(run_thread);  // where the first switch returns to
    fiber.stack_pointer = stack - 6;               // beneath the six registers it restores
  }
  for (unsigned i : order) enqueue(fibers[i]);
  current = ready[first_ready++];
  emulation_switch(&launcher, static_cast<Fiber*>(current)->stack_pointer);
  if (!error && exited != thread_count) {
    error = CUDA_ERROR_LAUNCH_TIMEOUT;
    message = describe_deadlock();
  }
}

uint3 block_at(size_t number) {
  return {static_cast<unsigned>(number % grid_extent.x),
          static_cast<unsigned>(number / grid_extent.x % grid_extent.y),
          static_cast<unsigned>(number / grid_extent.x / grid_extent.y)};
}

}  // namespace

void return_to_launcher() {
  void* abandoned;
  emulation_switch(&abandoned, launcher);
  __builtin_unreachable();
}

void set_error(int code, const std::string& text) {
  error = code;
  message = text;
}

void configure(Order value, unsigned seed, unsigned seconds) {
  std::lock_guard lock(device);
  chosen_order = value;
  shuffle.seed(seed);
  most_seconds = seconds;
}

int run_grid(const Kernel& launched, dim3 grid, dim3 block, size_t dynamic, void** given,
             std::string& why) {
  std::lock_guard lock(device);
  kernel = &launched;
  arguments = given;
  grid_extent = grid;
  block_extent = block;
  thread_count = block.x * block.y * block.z;
  error = 0;
  prepare_fibers();
  choose_order();
  Guarded shared(dynamic);
  dynamic_shared = static_cast<unsigned char*>(shared.begin);
  dynamic_size = dynamic;
  size_t blocks = size_t(grid.x) * grid.y * grid.z;
  std::vector<size_t> numbers(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    numbers[i] = chosen_order == Order::backward ? blocks - 1 - i : i;
  }
  if (chosen_order == Order::shuffled) std::shuffle(numbers.begin(), numbers.end(), shuffle);
  {
    FaultHandler handler(most_seconds);
    for (size_t i = 0; i < blocks && !error; ++i) {
      block_index = block_at(numbers[i]);
      memset(shared.begin, poison, dynamic);
      run_block();
    }
  }
  if (error) {
    char place[96];
    snprintf(place, sizeof place, ", block (%u, %u, %u): ", block_index.x, block_index.y,
             block_index.z);
    why = std::string("kernel ") + kernel->name + place + message;
  }
  return error;
}

void fail(int code, const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  char place[64];
  snprintf(place, sizeof place, "thread (%u, %u, %u): ", current->index.x, current->index.y,
           current->index.z);
  set_error(code, std::string(place) + text);
  return_to_launcher();
}

void block_barrier(int line) {
  Fiber& self = static_cast<Fiber&>(*current);
  if (at_barrier == 0) barrier_line = line;
  if (line != barrier_line) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "waits at __syncthreads of line %d while others wait at that of line %d", line,
         barrier_line);
  }
  self.state = State::at_block_barrier;
  self.line = line;
  if (++at_barrier == thread_count) {
    at_barrier = 0;
    shuffle_order();
    for (unsigned i : order) enqueue(fibers[i]);
  }
  yield();
}

void warp_collective(unsigned mask, void* lane, Collective operation, int line) {
  Fiber& self = static_cast<Fiber&>(*current);
  Fiber* warp = warp_of(self);
  if (!(mask >> self.number % warp_size & 1)) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "is not in the mask 0x%08x it gives at line %d", mask, line);
  }
  mask &= lanes_of(self);
  self.state = State::in_warp;
  self.mask = mask;
  self.lane = lane;
  self.operation = operation;
  self.line = line;
  bool complete = true;
  for (unsigned i = 0; i < warp_size && complete; ++i) {
    if (!(mask >> i & 1)) continue;
    complete = warp[i].state == State::in_warp && warp[i].mask == mask;
  }
  if (complete) {
    void* lanes[warp_size] = {};
    for (unsigned i = 0; i < warp_size; ++i) {
      if (!(mask >> i & 1)) continue;
      lanes[i] = warp[i].lane;
      if (warp[i].operation != operation || warp[i].line != line) {
        fail(CUDA_ERROR_LAUNCH_FAILED,
             "its warp does different things: line %d here, line %d in lane %u", line,
             warp[i].line, i);
      }
    }
    if (operation) operation(lanes);
    enqueue_lanes(warp, mask);
  }
  yield();
}

void warpgroup_collective(void* lane, Collective operation, int line) {
  Fiber& self = static_cast<Fiber&>(*current);
  unsigned begin = self.number / warpgroup_size * warpgroup_size;
  if (begin + warpgroup_size > thread_count) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "its warpgroup has only %u threads", thread_count - begin);
  }
  self.state = State::in_warpgroup;
  self.lane = lane;
  self.operation = operation;
  self.line = line;
  Fiber* group = &fibers[begin];
  for (unsigned i = 0; i < warpgroup_size; ++i) {
    if (group[i].state != State::in_warpgroup) return yield();
  }
  void* lanes[warpgroup_size];
  for (unsigned i = 0; i < warpgroup_size; ++i) {
    lanes[i] = group[i].lane;
    if (group[i].operation != operation || group[i].line != line) {
      fail(CUDA_ERROR_LAUNCH_FAILED,
           "its warpgroup does different things: line %d here, line %d in thread %u of it", line,
           group[i].line, i);
    }
  }
  operation(lanes);
  for (unsigned i = 0; i < warpgroup_size; i += warp_size) enqueue_lanes(group + i, ~0u);
  yield();
}

unsigned active_lanes(int line) {
  Fiber& self = static_cast<Fiber&>(*current);
  self.state = State::asks_for_active_lanes;
  self.line = line;
  yield();
  return self.mask;
}

void copy_later(void* target, const void* source, int bytes, int size) {
  memset(target, poison, size);  // neither the old nor the new values may be read until the wait
  Fiber& self = static_cast<Fiber&>(*current);
  self.copies.push_back({target, source, bytes, size, self.groups});
}

void commit_copies() { ++current->groups; }

void make_copies(unsigned pending_groups) {
  Fiber& self = static_cast<Fiber&>(*current);
  while (!self.copies.empty() && self.copies.front().group + pending_groups < self.groups) {
    const Copy& copy = self.copies.front();
    memset(copy.target, 0, copy.size);
    memcpy(copy.target, copy.source, copy.bytes);
    written_by_generic_proxy(copy.target, copy.size);
    self.copies.pop_front();
  }
}

}  // namespace emulation
