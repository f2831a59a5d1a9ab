// y = x Wᵀ by cuBLAS, for the dense layers of a module: a module of tvm-ffi that module.so calls.
//
// cuBLAS is opened by whoever loads this, so that code without it links with nothing of NVIDIA's.
// Its types are spelt as in cublas_api.h, whose values are part of its binary interface.

#include <dlfcn.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include <climits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace undense {
namespace {

namespace ffi = tvm::ffi;

using Status = int;
using CublasHandle = void*;

constexpr Status kSuccess = 0;
constexpr int kNotTransposed = 0, kTransposed = 1;
constexpr int kReal32 = 0, kReal16 = 2, kRealBfloat16 = 14;
constexpr int kCompute32 = 68;  // float32 sums; of float32 values without TF32
constexpr int kDefaultAlgorithm = -1;
// Else what parts of the depth sum up to is rounded to half precision before it is added.
constexpr int kDisallowReducedPrecisionReduction = 16;

// What cuBLAS recommends for GPUs since Hopper, the most that any wants.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

struct Cublas {
  Status (*create)(CublasHandle*);
  Status (*set_stream)(CublasHandle, void*);
  Status (*set_workspace)(CublasHandle, void*, size_t);
  Status (*set_math_mode)(CublasHandle, int);
  Status (*product)(CublasHandle, int, int, int, int, int, const void*, const void*, int, int,
                    const void*, int, int, const void*, void*, int, int, int, int);
  const char* (*status_text)(Status);

  void Check(Status status, const char* what) const {
    if (status == kSuccess) return;
    TVM_FFI_THROW(RuntimeError) << "cuBLAS cannot " << what << ": " << status_text(status)
                                << " (status " << status << ")";
  }
};

std::unique_ptr<const Cublas> opened;

const Cublas& Opened() {
  if (opened == nullptr) {
    TVM_FFI_THROW(RuntimeError) << "cuBLAS is not open: call undense_cublas_open(path) first";
  }
  return *opened;
}

template <typename Function>
void Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) TVM_FFI_THROW(RuntimeError) << dlerror();
}

// Takes cuBLAS from the library of that path, or of that name where the linker looks.
void Open(const ffi::String& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) TVM_FFI_THROW(RuntimeError) << dlerror();
  auto found = std::make_unique<Cublas>();
  Find(library, "cublasCreate_v2", &found->create);
  Find(library, "cublasSetStream_v2", &found->set_stream);
  Find(library, "cublasSetWorkspace_v2", &found->set_workspace);
  Find(library, "cublasSetMathMode", &found->set_math_mode);
  Find(library, "cublasGemmEx", &found->product);
  Find(library, "cublasGetStatusString", &found->status_text);
  opened = std::move(found);
}

// A handle with memory of its own: cuBLAS would ask for some in the middle of a product, which a
// stream that is being captured into a CUDA graph forbids, and a graph needs it to stay.
struct Handle {
  explicit Handle(DLDevice device) {
    const Cublas& cublas = Opened();
    static const ffi::Function allocate =
        ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    workspace = allocate(ffi::Shape({kWorkspaceBytes}), DLDataType{kDLUInt, 8, 1}, device, nullptr)
                    .cast<ffi::Tensor>();
    cublas.Check(cublas.create(&handle), "be set up on the GPU");
    cublas.Check(cublas.set_math_mode(handle, kDisallowReducedPrecisionReduction),
                 "be told to sum in float32");
  }

  // Every change of the stream takes the workspace away, so both are set.
  void Use(void* stream) const {
    const Cublas& cublas = Opened();
    cublas.Check(cublas.set_stream(handle, stream), "use the stream");
    cublas.Check(cublas.set_workspace(handle, workspace.data_ptr(), kWorkspaceBytes),
                 "use its workspace");
  }

  CublasHandle handle = nullptr;
  ffi::Tensor workspace;
};

// Handles of threads that have ended, for the next ones. They are never destroyed: when a process
// ends, CUDA may have ended before.
class Spare {
 public:
  std::unique_ptr<Handle> Take(DLDevice device) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto& handles = handles_[device.device_id];
      if (!handles.empty()) {
        std::unique_ptr<Handle> last = std::move(handles.back());
        handles.pop_back();
        return last;
      }
    }
    return std::make_unique<Handle>(device);
  }

  void Return(int device_id, std::unique_ptr<Handle> handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    handles_[device_id].push_back(std::move(handle));
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<std::unique_ptr<Handle>>> handles_;
};

Spare& TheSpare() {
  static Spare* const spare = new Spare;
  return *spare;
}

// The handles of a thread, one for each device. Its streams share the workspace, so that their
// products must wait for each other, as sessions have all calls do.
class OfThread {
 public:
  OfThread() = default;
  OfThread(const OfThread&) = delete;
  OfThread& operator=(const OfThread&) = delete;
  ~OfThread() {
    for (auto& [device_id, handle] : handles_) TheSpare().Return(device_id, std::move(handle));
  }

  const Handle& For(DLDevice device) {
    auto found = handles_.find(device.device_id);
    if (found == handles_.end()) {
      found = handles_.emplace(device.device_id, TheSpare().Take(device)).first;
    }
    return *found->second;
  }

 private:
  std::map<int, std::unique_ptr<Handle>> handles_;
};

int Type(DLDataType dtype) {
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 32) return kReal32;
  if (dtype.lanes == 1 && dtype.code == kDLFloat && dtype.bits == 16) return kReal16;
  if (dtype.lanes == 1 && dtype.code == kDLBfloat && dtype.bits == 16) return kRealBfloat16;
  TVM_FFI_THROW(TypeError) << "products by cuBLAS are of float16, bfloat16 and float32";
  return 0;
}

int Length(const ffi::TensorView& tensor, int axis) {
  const int64_t length = tensor.size(axis);
  if (length > INT_MAX) {
    TVM_FFI_THROW(ValueError) << "a product by cuBLAS has at most " << INT_MAX << " rows, got "
                              << length;
  }
  return static_cast<int>(length);
}

const void* Data(const ffi::TensorView& tensor) {
  return static_cast<const char*>(tensor.data_ptr()) + tensor.byte_offset();
}

// y[m, n] = x[m, k] weight[n, k]ᵀ, all by rows and of one type; queued on the thread's stream.
void Linear(ffi::TensorView x, ffi::TensorView weight, ffi::TensorView y) {
  thread_local OfThread handles;
  const Cublas& cublas = Opened();
  const DLDevice device = x.device();
  const Handle& handle = handles.For(device);
  handle.Use(TVMFFIEnvGetStream(device.device_type, device.device_id));
  const int m = Length(x, 0), k = Length(x, 1), n = Length(weight, 0);
  const int type = Type(x.dtype());
  const float one = 1, zero = 0;
  // By columns, as cuBLAS reads them, x and y are xᵀ and yᵀ, and the weight is Wᵀ: yᵀ = W xᵀ.
  const Status status = cublas.product(
      handle.handle, kTransposed, kNotTransposed, n, m, k, &one, Data(weight), type, k, Data(x),
      type, k, &zero, const_cast<void*>(Data(y)), type, n, kCompute32, kDefaultAlgorithm);
  if (status != kSuccess) {
    const std::string what = "multiply " + std::to_string(m) + " rows of " + std::to_string(k) +
                             " inputs to " + std::to_string(n) + " outputs";
    cublas.Check(status, what.c_str());
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(undense_cublas_open, Open)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(undense_cublas_linear, Linear)

}  // namespace undense
