// Matrix products of a warpgroup (wgmma), which run beside its threads, and the asynchronous proxy
// through which they see shared memory.
#pragma once

#include "scheduler.h"

#include <cstdint>

namespace emulation {

constexpr unsigned product_columns = 128;
constexpr unsigned product_sums = 64 * product_columns / warpgroup_size;  // of a thread

// A half as a float.
using Widen = float (*)(uint16_t);

// wgmma.fence: what a thread has stored to registers comes before its next products.
void order_registers(int line);

// wgmma.mma_async.m64n128k16 with A in registers and the descriptor of B. The sums are poison, and
// none of its operands may change, until the thread waits.
void multiply_later(float* sums, const unsigned* a, uint64_t descriptor, Widen widen, int line);

void commit_products(int line);
void finish_products(unsigned pending_groups, int line);

// fence.proxy.async: what the thread has stored to shared memory is there for products too.
void publish_shared();

// Where dynamic memory lies in the window of shared memory; its beginning is no multiple of 1024.
unsigned shared_offset(const void* address);

// The scheduler's, of a block's beginning, of each copy's end, and of each thread's end.
void forget_products();
void written_by_generic_proxy(const void* address, size_t size);
void require_no_products();

}  // namespace emulation
