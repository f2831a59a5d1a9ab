// The functions of libcublas that products of dense layers call, on the host: queued on their
// stream as kernels are, computed in float32 one product after the other, and noted for tests.
//
// Stricter than cuBLAS: what it would do more slowly, or with less precision, is an error here.

#include "launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

namespace {

enum Status { success = 0, not_initialized = 1, invalid = 7, execution = 13, not_supported = 15 };

constexpr int kTransposed = 1, kNotTransposed = 0, kCompute32 = 68, kDefaultAlgorithm = -1;
constexpr int kDisallowReducedPrecisionReduction = 16;

struct Product {
  void* stream;
  int rows, outputs, inputs, type;
};

struct Context {
  emulation::Stream* stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  int math_mode = 0;
};

std::mutex notes;
std::vector<Product> products;
int contexts = 0, next_status = success;

float value(const void* values, size_t i, int type) {
  if (type == 2) return __half2float(static_cast<const __half*>(values)[i]);
  if (type == 14) return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[i]);
  return static_cast<const float*>(values)[i];
}

void put(void* values, size_t i, int type, float sum) {
  if (type == 2) {
    static_cast<__half*>(values)[i] = __float2half(sum);
  } else if (type == 14) {
    static_cast<__nv_bfloat16*>(values)[i] = __float2bfloat16(sum);
  } else {
    static_cast<float*>(values)[i] = sum;
  }
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  // It allocates memory.
  if (emulation::forbidden_by_capture()) return not_initialized;
  std::lock_guard lock(notes);
  ++contexts;
  *handle = new Context;
  return success;
}

int cublasSetStream_v2(void* handle, void* stream) {
  auto* context = static_cast<Context*>(handle);
  *context = Context{static_cast<emulation::Stream*>(stream), nullptr, 0, context->math_mode};
  return success;
}

int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes) {
  auto* context = static_cast<Context*>(handle);
  if (reinterpret_cast<size_t>(workspace) % 256) return invalid;
  context->workspace = workspace;
  context->workspace_bytes = bytes;
  return success;
}

int cublasSetMathMode(void* handle, int mode) {
  static_cast<Context*>(handle)->math_mode = mode;
  return success;
}

const char* cublasGetStatusString(int status) {
  switch (status) {
    case not_initialized: return "the library was not initialized";
    case invalid: return "an unsupported value or parameter was passed to the function";
    case execution: return "the GPU program failed to execute";
    case not_supported: return "the requested functionality is not supported";
    default: return "unknown error";
  }
}

// c[j, i] = sum over l of a[i, l] b[j, l], by rows: the first operand is transposed by columns.
int cublasGemmEx(void* handle, int a_form, int b_form, int m, int n, int k, const void* alpha,
                 const void* a, int a_type, int a_stride, const void* b, int b_type, int b_stride,
                 const void* beta, void* c, int c_type, int c_stride, int compute, int algorithm) {
  const auto& context = *static_cast<Context*>(handle);
  if (m <= 0 || n <= 0 || k <= 0 || a_stride < k || b_stride < k || c_stride < m) return invalid;
  if (a_form != kTransposed || b_form != kNotTransposed || compute != kCompute32 ||
      algorithm != kDefaultAlgorithm || a_type != b_type || a_type != c_type ||
      *static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0 ||
      context.math_mode != kDisallowReducedPrecisionReduction || !context.workspace) {
    return not_supported;
  }
  {
    std::lock_guard lock(notes);
    products.push_back({context.stream, n, m, k, a_type});
    if (int status = std::exchange(next_status, success)) return status;
  }
  void* workspace = context.workspace;
  const size_t bytes = context.workspace_bytes;
  auto work = [=] {
    std::memset(workspace, 0xff, bytes);
    for (size_t j = 0; j < static_cast<size_t>(n); ++j) {
      for (size_t i = 0; i < static_cast<size_t>(m); ++i) {
        float sum = 0;
        for (int l = 0; l < k; ++l) {
          sum += value(a, i * a_stride + l, a_type) * value(b, j * b_stride + l, b_type);
        }
        put(c, j * c_stride + i, c_type, sum);
      }
    }
    return 0;
  };
  return emulation::submit(context.stream, work) ? execution : success;
}

// Takes the notes of at most `most` products away; returns of how many.
int cublasEmulationTake(Product* found, int most) {
  std::lock_guard lock(notes);
  int count = 0;
  for (; count < most && count < static_cast<int>(products.size()); ++count) {
    found[count] = products[count];
  }
  products.clear();
  return count;
}

int cublasEmulationHandles() {
  std::lock_guard lock(notes);
  return contexts;
}

// The next product returns this instead.
void cublasEmulationFail(int status) {
  std::lock_guard lock(notes);
  next_status = status;
}

}  // extern "C"
