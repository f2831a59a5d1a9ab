// The functions of libcudart.so.13 that TVM's CUDA runtime calls, on the host.

#include "launch.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <cuda_runtime_api.h>
#include <map>
#include <memory>
#include <mutex>

namespace {

using emulation::Guarded;
using emulation::Stream;

thread_local cudaError_t last_error = cudaSuccess;

std::mutex memory;
std::map<char*, std::unique_ptr<Guarded>> allocations;

std::atomic<int> graph_launches;

cudaError_t report(int error, const char* reason = nullptr) {
  if (reason) emulation::set_reason(reason);
  if (error != cudaSuccess) last_error = static_cast<cudaError_t>(error);
  return static_cast<cudaError_t>(error);
}

cudaError_t refuse_during_capture(const char* function) {
  if (!emulation::forbidden_by_capture()) return cudaSuccess;
  emulation::set_reason(std::string(function) + " while a stream captures");
  return report(cudaErrorStreamCaptureUnsupported);
}

Stream* of(cudaStream_t handle) { return reinterpret_cast<Stream*>(handle); }

// Whether a range lies within one allocation of the device.
bool on_device(const void* begin, size_t size) {
  auto* address = static_cast<char*>(const_cast<void*>(begin));
  std::lock_guard lock(memory);
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return false;
  auto& [start, allocation] = *std::prev(after);
  return address + size <= start + allocation->size;
}

struct Event {
  std::chrono::steady_clock::time_point time;
};

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define NAME(value) \
  case value:       \
    return emulation::with_reason(#value);
    NAME(cudaSuccess)
    NAME(cudaErrorInvalidValue)
    NAME(cudaErrorMemoryAllocation)
    NAME(cudaErrorInvalidDevice)
    NAME(cudaErrorIllegalAddress)
    NAME(cudaErrorMisalignedAddress)
    NAME(cudaErrorLaunchFailure)
    NAME(cudaErrorLaunchTimeout)
    NAME(cudaErrorIllegalState)
    NAME(cudaErrorStreamCaptureUnsupported)
    NAME(cudaErrorStreamCaptureInvalidated)
    NAME(cudaErrorStreamCaptureImplicit)
#undef NAME
    default:
      return emulation::with_reason("cudaErrorUnknown");
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

// --- The device: an H100 ---

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : report(cudaErrorInvalidDevice, "there is one device, 0");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return report(cudaErrorInvalidDevice, "there is one device, 0");
  static const std::map<int, int> values = {
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrMaxGridDimX, 0x7FFFFFFF},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
      {cudaDevAttrReservedSharedMemoryPerBlock, 1 << 10},
      {cudaDevAttrTotalConstantMemory, 64 << 10},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrClockRate, 1980000},
      {cudaDevAttrL2CacheSize, 50 << 20},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
  };
  auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  strcpy(properties->name, "CUDA emulated on the host");
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->warpSize = 32;
  properties->totalGlobalMem = size_t{80} << 30;
  properties->l2CacheSize = 50 << 20;
  properties->maxThreadsPerBlock = 1024;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  return cudaSuccess;
}

// --- Memory ---

cudaError_t cudaMalloc(void** pointer, size_t size) {
  if (cudaError_t error = refuse_during_capture("cudaMalloc")) return error;
  auto allocation = std::make_unique<Guarded>(size);
  if (!allocation->begin) return report(cudaErrorMemoryAllocation);
  *pointer = allocation->begin;
  std::lock_guard lock(memory);
  allocations[static_cast<char*>(*pointer)] = std::move(allocation);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  // It ends a capture, which tells; an error here would end the process, as destructors free.
  if (emulation::forbidden_by_capture()) emulation::set_reason("cudaFree while a stream captures");
  std::lock_guard lock(memory);
  if (!allocations.erase(static_cast<char*>(pointer))) {
    return report(cudaErrorInvalidValue, "cudaFree of what cudaMalloc did not give");
  }
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, size_t size) {
  if (cudaError_t error = refuse_during_capture("cudaMallocHost")) return error;
  *pointer = aligned_alloc(256, (size + 255) / 256 * 256);
  return *pointer ? cudaSuccess : report(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* pointer) {
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = size_t{80} << 30;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to_device && !on_device(target, size)) || (from_device && !on_device(source, size))) {
    return report(cudaErrorInvalidValue, "a copy reaches beyond an allocation of the device");
  }
  return report(emulation::submit(of(stream), [=] {
    memmove(target, source, size);
    return cudaSuccess;
  }));
}

cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t size,
                                cudaStream_t stream) {
  return cudaMemcpyAsync(target, source, size, cudaMemcpyDeviceToDevice, stream);
}

// --- Streams and events: work is done when it is given ---

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emulation::end_capture(of(stream));
  delete of(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!stream || of(stream)->capturing) return refuse_during_capture("cudaStreamSynchronize");
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return report(emulation::submit(of(stream), [event] {
    reinterpret_cast<Event*>(event)->time = std::chrono::steady_clock::now();
    return cudaSuccess;
  }));
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return refuse_during_capture("cudaEventSynchronize");
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  auto elapsed = reinterpret_cast<Event*>(end)->time - reinterpret_cast<Event*>(begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(elapsed).count();
  return cudaSuccess;
}

// --- Graphs ---

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return report(cudaErrorStreamCaptureUnsupported, "the default stream cannot capture");
  if (of(stream)->capturing) return report(cudaErrorIllegalState, "the stream captures already");
  emulation::begin_capture(of(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || !of(stream)->capturing) return report(cudaErrorIllegalState, "no capture to end");
  emulation::end_capture(of(stream));
  if (of(stream)->invalidated) return report(cudaErrorStreamCaptureInvalidated);
  *graph = reinterpret_cast<cudaGraph_t>(new emulation::Graph(std::move(of(stream)->graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  if (!graph) return report(cudaErrorInvalidValue, "there is no graph: its capture failed");
  auto* recorded = reinterpret_cast<emulation::Graph*>(graph);
  *executable = reinterpret_cast<cudaGraphExec_t>(new emulation::Graph(*recorded));
  return cudaSuccess;
}

// For Python: how many graphs were launched so far.
int cudaEmulationGraphLaunches() { return graph_launches; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++graph_launches;
  auto& graph = *reinterpret_cast<emulation::Graph*>(executable);
  return report(emulation::submit(of(stream), [&graph] {
    for (auto& work : graph) {
      if (int error = work()) return error;
    }
    return int{cudaSuccess};
  }));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<emulation::Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<emulation::Graph*>(executable);
  return cudaSuccess;
}

}  // extern "C"
