// What the generated table of a kernel library says, and the hooks between its two halves.
#pragma once

#include <dlpack/dlpack.h>
#include <onnxruntime_c_api.h>
#include <tvm/ffi/c_api.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

namespace undense {

constexpr size_t kAlignment = 64;  // bytes, that generated code takes for granted

// A stored tensor without its memory.
struct Stored {
  DLDataType dtype;
  int32_t rank;
  const int64_t* shape;
  const int64_t* strides;
};

// What a step writes: [rows, width].
struct Computed {
  DLDataType dtype;
  int64_t width;
};

// function(values[0], values[1], ...), by number: 0 is x, then the stored tensors, then the
// computed ones in the order of the steps.
struct Step {
  TVMFFISafeCallType function;
  int32_t count;
  const int32_t* values;
};

// One product or gather; sites of equal shapes share it. The last computed value is y.
struct Form {
  ONNXTensorElementDataType x_type;
  DLDataType x;
  int64_t features;  // of x; 0 for indices, all of whose dimensions are rows
  int32_t stored_count;
  const Stored* stored;
  int32_t computed_count;
  const Computed* computed;
  int32_t step_count;
  const Step* steps;
};

// One site, as the nodes of one operator use it: their second input, a constant, has this name.
struct Site {
  const char* operator_type;
  const char* tensor;
  ONNXTensorElementDataType type;  // of that constant; what tells one model from another
  uint64_t elements;
  uint64_t checked_bytes;  // at its start, that the checksum covers
  uint64_t checksum;       // FNV-1a of 64 bits
  const Form* form;
  const uint64_t* offsets;  // of the stored tensors in kWeights
};

extern const char* const kOperators[];
extern const size_t kOperatorCount;
extern const Site kSites[];
extern const size_t kSiteCount;
extern const unsigned char* const kWeights;

// What the code of one call of a kernel may use: the thread pool of its session, and a place for
// an error.
class Call {
 public:
  Call(const OrtApi* api, const OrtKernelContext* context, int threads)
      : api(api), context(context), threads(threads) {}

  void Fail(const std::string& message) {
    std::lock_guard<std::mutex> hold(mutex_);
    if (error_.empty()) error_ = message;
  }

  std::string Error() {
    std::lock_guard<std::mutex> hold(mutex_);
    return error_.empty() ? "no reason was given" : error_;
  }

  const OrtApi* const api;
  const OrtKernelContext* const context;
  const int threads;

 private:
  std::mutex mutex_;
  std::string error_;
};

// Makes a call the one of this thread while it is in scope.
class Scope {
 public:
  Scope(Call* call, bool in_task);
  ~Scope();

 private:
  Call* call_before_;
  bool in_task_before_;
};

}  // namespace undense
