// The functions of libcuda.so.1 that TVM's CUDA runtime calls, on the host.

#include "launch.h"

#include <atomic>
#include <cstring>
#include <cuda.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <set>
#include <sys/mman.h>

namespace emulation {

namespace {

std::mutex streams;
std::set<Stream*> capturing;
thread_local std::string last_reason;
thread_local std::string last_text;

// What an H100 allows.
constexpr size_t shared_default = 48 << 10;
constexpr size_t shared_opt_in = 227 << 10;
constexpr unsigned most_block_depth = 64;
constexpr unsigned most_grid_width = 0x7FFFFFFF;
constexpr unsigned most_grid_height = 65535;

constexpr char magic[] = "CUDA emulation image\n";

// A kernel as the driver knows it: what cuFuncSetAttribute sets comes on top.
struct Function {
  const Kernel* kernel;
  size_t most_dynamic_shared;
};

struct Module {
  void* library = nullptr;
  std::map<std::string, Function> functions;
};

}  // namespace

Guarded::Guarded(size_t bytes) : size(bytes) {
  constexpr size_t page = 4096, alignment = 256;
  size_t used = (bytes + alignment - 1) / alignment * alignment;
  size_t readable = (used + page - 1) / page * page;
  mapped_ = readable + page;
  void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  mapping_ = memory;
  mprotect(static_cast<char*>(memory) + readable, page, PROT_NONE);
  begin = static_cast<char*>(memory) + readable - used;
  memset(memory, poison, readable);
}

Guarded::~Guarded() {
  if (mapping_) munmap(mapping_, mapped_);
}

void set_reason(const std::string& reason) { last_reason = reason; }

const char* with_reason(const char* text) {
  last_text = last_reason.empty() ? text : std::string(text) + " (" + last_reason + ")";
  return last_text.c_str();
}

void begin_capture(Stream* stream) {
  std::lock_guard lock(streams);
  stream->capturing = true;
  stream->invalidated = false;
  stream->graph.clear();
  capturing.insert(stream);
}

void end_capture(Stream* stream) {
  std::lock_guard lock(streams);
  stream->capturing = false;
  capturing.erase(stream);
}

bool forbidden_by_capture() {
  std::lock_guard lock(streams);
  for (Stream* stream : capturing) stream->invalidated = true;
  return !capturing.empty();
}

int submit(Stream* stream, Work work) {
  if (stream && stream->capturing) {
    if (stream->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->graph.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  // The default stream waits for all others, and a capturing one cannot be waited for.
  if (!stream && forbidden_by_capture()) {
    set_reason("work on the default stream while another stream captures");
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  return work();
}

}  // namespace emulation

namespace {

using emulation::Function;
using emulation::Kernel;
using emulation::Module;
using emulation::Stream;

CUresult refuse(CUresult error, const std::string& reason) {
  emulation::set_reason(reason);
  return error;
}

CUresult check_launch(const CUlaunchConfig& config, const Function& function) {
  using namespace emulation;
  std::string name = std::string("kernel ") + function.kernel->name + ": ";
  size_t threads = size_t(config.blockDimX) * config.blockDimY * config.blockDimZ;
  size_t blocks = size_t(config.gridDimX) * config.gridDimY * config.gridDimZ;
  if (threads == 0 || blocks == 0) {
    return refuse(CUDA_ERROR_INVALID_VALUE, name + "a grid or a block is empty");
  }
  if (threads > function.kernel->most_threads || config.blockDimZ > most_block_depth) {
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  name + "a block of " + std::to_string(threads) + " threads; at most " +
                      std::to_string(function.kernel->most_threads));
  }
  if (config.gridDimX > most_grid_width || config.gridDimY > most_grid_height ||
      config.gridDimZ > most_grid_height) {
    return refuse(CUDA_ERROR_INVALID_VALUE, name + "the grid is too large");
  }
  if (config.sharedMemBytes > function.most_dynamic_shared) {
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  name + std::to_string(config.sharedMemBytes) +
                      " bytes of dynamic shared memory; at most " +
                      std::to_string(function.most_dynamic_shared));
  }
  return CUDA_SUCCESS;
}

// A kernel's arguments, copied: a graph is replayed when the caller's are gone.
class Arguments {
 public:
  Arguments(const Kernel& kernel, void** given) {
    for (size_t i = 0; i < kernel.argument_count; ++i) {
      auto* bytes = static_cast<const char*>(given[i]);
      values_.emplace_back(bytes, bytes + kernel.argument_sizes[i]);
    }
  }
  std::vector<void*> pointers() {
    std::vector<void*> result;
    for (auto& value : values_) result.push_back(value.data());
    return result;
  }

 private:
  std::vector<std::vector<char>> values_;
};

size_t static_shared(const Kernel& kernel) { return kernel.shared_end - kernel.shared_begin; }

}  // namespace

extern "C" {

// For Python: in which order threads and blocks run, and how long at most.
void cudaEmulationConfigure(int order, unsigned seed, unsigned seconds) {
  emulation::configure(static_cast<emulation::Order>(order), seed, seconds);
}

CUresult cuGetErrorName(CUresult error, const char** text);

CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

CUresult cuGetErrorName(CUresult error, const char** text) {
  const char* name = "CUDA_ERROR_UNKNOWN";
  switch (error) {
#define NAME(value) \
  case value:       \
    name = #value;  \
    break;
    NAME(CUDA_SUCCESS)
    NAME(CUDA_ERROR_INVALID_VALUE)
    NAME(CUDA_ERROR_INVALID_IMAGE)
    NAME(CUDA_ERROR_NOT_FOUND)
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS)
    NAME(CUDA_ERROR_MISALIGNED_ADDRESS)
    NAME(CUDA_ERROR_LAUNCH_FAILED)
    NAME(CUDA_ERROR_LAUNCH_TIMEOUT)
    NAME(CUDA_ERROR_NOT_SUPPORTED)
    NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    NAME(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
#undef NAME
    default:
      break;
  }
  *text = emulation::with_reason(name);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  strncpy(name, "CUDA emulated on the host", length);
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return refuse(CUDA_ERROR_NOT_SUPPORTED, "the emulation has no tensor maps");
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  auto* text = static_cast<const char*>(image);
  constexpr size_t length = sizeof emulation::magic - 1;
  if (strncmp(text, emulation::magic, length) != 0) {
    return refuse(CUDA_ERROR_INVALID_IMAGE,
                  "the image is no product of the emulation's compiler; compile inside emulated()");
  }
  if (emulation::forbidden_by_capture()) {
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a module is loaded during a capture");
  }
  std::string path(text + length, strcspn(text + length, "\n"));
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return refuse(CUDA_ERROR_INVALID_IMAGE, dlerror());
  auto* loaded = new Module;
  loaded->library = library;
  *module = reinterpret_cast<CUmodule>(loaded);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  auto* loaded = reinterpret_cast<Module*>(module);
  dlclose(loaded->library);
  delete loaded;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  auto* loaded = reinterpret_cast<Module*>(module);
  std::string symbol = std::string("emulated_") + name;
  auto* kernel = static_cast<const Kernel*>(dlsym(loaded->library, symbol.c_str()));
  if (!kernel) return refuse(CUDA_ERROR_NOT_FOUND, std::string("no kernel ") + name);
  if (static_shared(*kernel) > emulation::shared_default) {
    return refuse(CUDA_ERROR_INVALID_IMAGE,
                  std::string("kernel ") + name + ": " + std::to_string(static_shared(*kernel)) +
                      " bytes of static shared memory; at most " +
                      std::to_string(emulation::shared_default));
  }
  size_t dynamic = emulation::shared_default - static_shared(*kernel);
  auto found = loaded->functions.try_emplace(name, Function{kernel, dynamic}).first;
  *function = reinterpret_cast<CUfunction>(&found->second);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  auto* function = reinterpret_cast<Function*>(handle);
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  size_t most = emulation::shared_opt_in - static_shared(*function->kernel);
  if (value < 0 || size_t(value) > most) {
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  std::string("kernel ") + function->kernel->name + ": " + std::to_string(value) +
                      " bytes of dynamic shared memory; at most " + std::to_string(most));
  }
  function->most_dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** given, void**) {
  auto* function = reinterpret_cast<Function*>(handle);
  CUresult checked = check_launch(*config, *function);
  if (checked != CUDA_SUCCESS) return checked;
  const Kernel& kernel = *function->kernel;
  dim3 grid(config->gridDimX, config->gridDimY, config->gridDimZ);
  dim3 block(config->blockDimX, config->blockDimY, config->blockDimZ);
  size_t dynamic = config->sharedMemBytes;
  auto work = [&kernel, grid, block, dynamic, arguments = Arguments(kernel, given)]() mutable {
    std::string reason;
    int error =
        emulation::run_grid(kernel, grid, block, dynamic, arguments.pointers().data(), reason);
    emulation::set_reason(reason);
    return error;
  };
  auto* stream = reinterpret_cast<Stream*>(config->hStream);
  return static_cast<CUresult>(emulation::submit(stream, std::move(work)));
}

}  // extern "C"
