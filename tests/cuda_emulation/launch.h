// What the driver asks of the scheduler, and streams and graphs that both libraries share.
#pragma once

#include "scheduler.h"

#include <functional>
#include <string>
#include <vector>

namespace emulation {

enum class Order { forward, backward, shuffled };

// How launches run from now on; one that takes longer than the limit is an error.
void configure(Order order, unsigned seed, unsigned seconds);

// Runs a grid to its end; a CUresult, and the reason where it is not CUDA_SUCCESS.
int run_grid(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared, void** arguments,
             std::string& reason);

// Memory that ends at a page nobody may touch, filled with poison.
class Guarded {
 public:
  explicit Guarded(size_t size);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void* begin = nullptr;  // null where there is no memory left
  size_t size;

 private:
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
};

// Work of a stream: a CUresult.
using Work = std::function<int()>;
using Graph = std::vector<Work>;

struct Stream {
  bool capturing = false;
  bool invalidated = false;
  Graph graph;
};

// Does work at once, or records it where the stream captures; a CUresult.
int submit(Stream* stream, Work work);

// What must not happen while any stream captures (in its global mode): invalidates and tells.
bool forbidden_by_capture();

void begin_capture(Stream* stream);
void end_capture(Stream* stream);

// The last reason for an error, for the texts that the driver and the runtime give.
void set_reason(const std::string& reason);
const char* with_reason(const char* text);

}  // namespace emulation
