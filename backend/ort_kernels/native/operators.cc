// The operators of the domain `undense` as custom operators of ONNX Runtime.
//
// A node finds its kernel by the name of its second input, the first packed tensor of its site.
// What the kernel reads is stored in this library: the tensors of the model file stay unread.

#include <sched.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"

namespace undense {
namespace {

constexpr const char* kDomain = "undense";
constexpr const char* kThreadsEntry = "undense.num_threads";

const OrtApi* api = nullptr;

class Failure : public std::exception {
 public:
  explicit Failure(const std::string& message) : message_("undense: " + message) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Failure(message);
}

// No exception may pass through ONNX Runtime.
template <typename Function>
OrtStatus* Guarded(Function function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

struct Tensor {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  void* data;
};

Tensor Read(const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(api->GetTensorTypeAndShape(value, &raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> info(
      raw, api->ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  Check(api->GetTensorElementType(raw, &tensor.type));
  Check(api->GetDimensionsCount(raw, &rank));
  tensor.shape.resize(rank);
  Check(api->GetDimensions(raw, tensor.shape.data(), rank));
  Check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

uint64_t Count(const std::vector<int64_t>& shape) {
  uint64_t count = 1;
  for (const int64_t length : shape) count *= length;
  return count;
}

ONNXTensorElementDataType XType(const OrtKernelInfo* info) {
  OrtTypeInfo* raw = nullptr;
  Check(api->KernelInfo_GetInputTypeInfo(info, 0, &raw));
  const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> held(raw, api->ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Check(api->CastTypeInfoToTensorInfo(raw, &tensor));
  Check(api->GetTensorElementType(tensor, &type));
  return type;
}

bool IsConstantOf(const Site& site, const OrtKernelInfo* info) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api->KernelInfoGetConstantInput_tensor(info, 1, &is_constant, &value));
  if (!is_constant) return false;
  const Tensor tensor = Read(value);
  if (tensor.type != site.type || Count(tensor.shape) != site.elements) return false;
  const auto* bytes = static_cast<const unsigned char*>(tensor.data);
  uint64_t sum = 0xcbf29ce484222325u;
  for (uint64_t i = 0; i < site.checked_bytes; ++i) sum = (sum ^ bytes[i]) * 0x100000001b3u;
  return sum == site.checksum;
}

std::string InputName(const OrtKernelInfo* info, size_t index) {
  size_t size = 0;
  Check(api->KernelInfo_GetInputName(info, index, nullptr, &size));
  std::string name(size, '\0');
  Check(api->KernelInfo_GetInputName(info, index, name.data(), &size));
  name.resize(std::strlen(name.c_str()));
  return name;
}

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool IsAligned(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % kAlignment == 0;
}

size_t Bytes(int64_t rows, int64_t width, DLDataType type) {
  return static_cast<size_t>(rows) * width * ((type.bits * type.lanes + 7) / 8);
}

// Memory for one call, out of the arena of the session.
class Scratch {
 public:
  Scratch(OrtAllocator* allocator, size_t bytes) : allocator_(allocator) {
    if (bytes == 0) return;
    memory_ = allocator->Alloc(allocator, bytes + kAlignment);
    if (memory_ == nullptr) throw Failure("out of memory");
    const auto start = reinterpret_cast<uintptr_t>(memory_);
    next_ = reinterpret_cast<unsigned char*>(Aligned(start));
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (memory_ != nullptr) allocator_->Free(allocator_, memory_);
  }

  void* Take(size_t bytes) {
    unsigned char* taken = next_;
    next_ += Aligned(bytes);
    return taken;
  }

 private:
  OrtAllocator* allocator_;
  void* memory_ = nullptr;
  unsigned char* next_ = nullptr;
};

struct Operator : OrtCustomOp {
  const char* name;
  int threads;
};

class Kernel {
 public:
  Kernel(const Operator& self, const OrtKernelInfo* info) : threads_(self.threads) {
    const std::string tensor = InputName(info, 1);
    const ONNXTensorElementDataType type = XType(info);
    const Site* end = kSites + kSiteCount;
    const Site* site = std::find_if(kSites, end, [&](const Site& candidate) {
      return tensor == candidate.tensor && type == candidate.form->x_type &&
             !std::strcmp(self.name, candidate.operator_type);
    });
    if (site == end || !IsConstantOf(*site, info)) {
      throw Failure("this library holds no kernel for " + std::string(self.name) + " of " +
                    tensor + "; load the model and the library of one artifact");
    }
    name_ = site->tensor;
    form_ = site->form;
    for (int32_t i = 0; i < form_->stored_count; ++i) {
      const Stored& stored = form_->stored[i];
      auto* data = const_cast<unsigned char*>(kWeights + site->offsets[i]);
      stored_.push_back({data, {kDLCPU, 0}, stored.rank, stored.dtype,
                         const_cast<int64_t*>(stored.shape),
                         const_cast<int64_t*>(stored.strides), 0});
    }
    Check(api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
  }

  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  ~Kernel() { api->ReleaseAllocator(allocator_); }

  void Compute(OrtKernelContext* context) const {
    const OrtValue* input = nullptr;
    Check(api->KernelContext_GetInput(context, 0, &input));
    Tensor x = Read(input);
    if (form_->features != 0) {
      if (x.shape.empty() || x.shape.back() != form_->features) {
        throw Failure(std::string(name_) + ": the last dimension of x is not " +
                      std::to_string(form_->features));
      }
      x.shape.pop_back();
    }
    const auto rows = static_cast<int64_t>(Count(x.shape));
    x.shape.push_back(Last().width);
    OrtValue* output = nullptr;
    Check(api->KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &output));
    if (rows == 0) return;
    void* y = nullptr;
    Check(api->GetTensorMutableData(output, &y));
    Call call(api, context, threads_);
    Run(&call, rows, x.data, y);
  }

 private:
  const Computed& Last() const { return form_->computed[form_->computed_count - 1]; }

  void Run(Call* call, int64_t rows, void* x, void* y) const {
    const size_t x_bytes = Bytes(rows, std::max<int64_t>(form_->features, 1), form_->x);
    const size_t y_bytes = Bytes(rows, Last().width, Last().dtype);
    size_t needed = (IsAligned(x) ? 0 : Aligned(x_bytes)) + (IsAligned(y) ? 0 : Aligned(y_bytes));
    for (int32_t i = 0; i + 1 < form_->computed_count; ++i) {
      needed += Aligned(Bytes(rows, form_->computed[i].width, form_->computed[i].dtype));
    }
    Scratch scratch(allocator_, needed);
    if (!IsAligned(x)) x = std::memcpy(scratch.Take(x_bytes), x, x_bytes);
    void* aligned_y = IsAligned(y) ? y : scratch.Take(y_bytes);

    int64_t one = 1;
    std::vector<int64_t> lengths(4 * (form_->computed_count + 1));
    int64_t* shape = lengths.data();
    const auto matrix = [&](void* data, int64_t width, DLDataType dtype) {
      const int64_t given[] = {rows, width, width, 1};
      int64_t* at = std::copy(given, given + 4, shape) - 4;
      shape += 4;
      return DLTensor{data, {kDLCPU, 0}, 2, dtype, at, at + 2, 0};
    };
    std::vector<DLTensor> values;
    values.reserve(1 + stored_.size() + form_->computed_count);
    values.push_back(matrix(x, form_->features, form_->x));
    if (form_->features == 0) {
      values[0].ndim = 1;
      values[0].strides = &one;
    }
    values.insert(values.end(), stored_.begin(), stored_.end());
    for (int32_t i = 0; i < form_->computed_count; ++i) {
      const Computed& computed = form_->computed[i];
      const bool last = i + 1 == form_->computed_count;
      void* data = last ? aligned_y : scratch.Take(Bytes(rows, computed.width, computed.dtype));
      values.push_back(matrix(data, computed.width, computed.dtype));
    }
    const Scope scope(call, false);
    for (int32_t i = 0; i < form_->step_count; ++i) RunStep(call, form_->steps[i], values.data());
    if (aligned_y != y) std::memcpy(y, aligned_y, y_bytes);
  }

  void RunStep(Call* call, const Step& step, DLTensor* values) const {
    std::vector<TVMFFIAny> arguments(step.count);
    for (int32_t i = 0; i < step.count; ++i) {
      arguments[i].type_index = kTVMFFIDLTensorPtr;
      arguments[i].v_ptr = &values[step.values[i]];
    }
    TVMFFIAny result{};
    if (step.function(nullptr, arguments.data(), step.count, &result) != 0) {
      throw Failure(std::string(name_) + ": " + call->Error());
    }
  }

  const char* name_;
  const Form* form_;
  std::vector<DLTensor> stored_;
  OrtAllocator* allocator_ = nullptr;
  int threads_;
};

Operator MakeOperator(const char* name, int threads) {
  Operator made{};
  made.name = name;
  made.threads = threads;
  made.version = ORT_API_VERSION;
  made.GetName = [](const OrtCustomOp* self) {
    return static_cast<const Operator*>(self)->name;
  };
  made.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  made.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  made.GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
  // x, then however many packed tensors the structure has, of any types.
  made.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
  made.GetInputType = [](const OrtCustomOp*, size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  };
  made.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_VARIADIC;
  };
  made.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  made.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  made.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  made.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  made.GetOutputType = [](const OrtCustomOp*, size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  made.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                           void** kernel) {
    return Guarded([&] { *kernel = new Kernel(*static_cast<const Operator*>(self), info); });
  };
  made.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return Guarded([&] { static_cast<const Kernel*>(kernel)->Compute(context); });
  };
  made.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return made;
}

// ONNX Runtime does not say how many threads a session has: the entry of the options does, else
// it is the processors that this process may use.
int Threads(const OrtSessionOptions* options) {
  char text[16] = "";
  size_t size = sizeof text;
  int found = 0;
  Check(api->HasSessionConfigEntry(options, kThreadsEntry, &found));
  if (found) {
    Check(api->GetSessionConfigEntry(options, kThreadsEntry, text, &size));
    const int threads = std::atoi(text);
    if (threads < 1) throw Failure(std::string(kThreadsEntry) + " is '" + text + "', no number");
    return threads;
  }
  cpu_set_t usable;
  return sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable) : 1;
}

// Options and sessions refer to operators, and nothing says when the last of them is gone: a set
// of operators stays for good, one for each number of threads.
OrtCustomOpDomain* Domain(int threads) {
  static std::mutex mutex;
  static std::map<int, std::pair<OrtCustomOpDomain*, std::vector<Operator>>> known;
  const std::lock_guard<std::mutex> hold(mutex);
  auto& [domain, operators] = known[threads];
  if (domain != nullptr) return domain;
  for (size_t i = 0; i < kOperatorCount; ++i) {
    operators.push_back(MakeOperator(kOperators[i], threads));
  }
  OrtCustomOpDomain* made = nullptr;
  Check(api->CreateCustomOpDomain(kDomain, &made));
  for (const Operator& added : operators) Check(api->CustomOpDomain_Add(made, &added));
  return domain = made;
}

}  // namespace
}  // namespace undense

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace undense;
  api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, "undense: these kernels need ONNX Runtime 1.21 or later; install it");
  }
  return Guarded([&] { Check(api->AddCustomOpDomain(options, Domain(Threads(options)))); });
}
