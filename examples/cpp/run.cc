// Runs an artifact of undense without Python, by TVM's runtime alone.
//
//   run ARTIFACT INPUTS.safetensors OUTPUTS.safetensors [THREADS [REPEATS]]
//
// It does not check the hashes of the manifest: run only an artifact that you trust, and that
// arrived whole (`undense verify` checks that, and runs the code).

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "manifest.h"
#include "safetensors.h"

namespace ffi = tvm::ffi;

// Memory as generated code wants it: aligned to 64 bytes, and never null.
struct Memory {
  static constexpr size_t kAlignment = 64;
  void AllocData(DLTensor* tensor) {
    size_t bytes = tensor->dtype.bits / 8;
    for (int i = 0; i < tensor->ndim; ++i) bytes *= static_cast<size_t>(tensor->shape[i]);
    tensor->data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    if (tensor->data == nullptr) throw std::runtime_error("out of memory");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor Load(SafetensorsFile* file, const std::string& name) {
  const Entry& entry = file->entry(name);
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(Memory(), ffi::Shape(entry.shape),
                                                entry.dtype->dlpack, DLDevice{kDLCPU, 0});
  file->Read(entry, tensor.data_ptr());
  return tensor;
}

template <typename Index>
void CheckIndices(const Info& info, const ffi::Tensor& tensor) {
  const auto* begin = static_cast<const Index*>(tensor.data_ptr());
  for (const Index* index = begin; index != begin + tensor.numel(); ++index) {
    if (*index < info.bounds->first || *index > info.bounds->second)
      throw std::runtime_error(info.name + ": expected indices from " +
                               std::to_string(info.bounds->first) + " to " +
                               std::to_string(info.bounds->second) + ", got " +
                               std::to_string(*index));
  }
}

std::vector<ffi::Tensor> LoadInputs(const Manifest& manifest, SafetensorsFile* file) {
  Types given;
  for (const auto& [name, entry] : file->entries())
    given[name] = {entry.dtype->numpy, entry.shape};
  manifest.Check(given);
  std::vector<ffi::Tensor> inputs;
  for (const Info& info : manifest.inputs) {
    inputs.push_back(Load(file, info.name));
    if (info.bounds && info.dtype == "int64") CheckIndices<int64_t>(info, inputs.back());
    if (info.bounds && info.dtype == "int32") CheckIndices<int32_t>(info, inputs.back());
  }
  return inputs;
}

void UseThreads(int threads) {
  constexpr int kBigCores = 1;
  ffi::Array<ffi::String> cores;
  for (int i = 0; i < threads; ++i) cores.push_back("0");  // not bound: see TVM_BIND_THREADS
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kBigCores, threads, cores);
}

// The function main(inputs..., parameters...) of the module. One machine serves one thread.
ffi::Function LoadMain(const std::string& path) {
  constexpr int kPooledMemory = 2;
  const ffi::Module executable = ffi::Module::LoadFromFile(path);
  const ffi::Module machine =
      executable->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledMemory);
  return machine->GetFunction("main").value();
}

std::vector<ffi::Tensor> Call(const ffi::Function& main, const std::vector<ffi::Tensor>& values) {
  std::vector<ffi::AnyView> arguments(values.begin(), values.end());
  ffi::Any result;
  main.CallPacked(ffi::PackedArgs(arguments.data(), static_cast<int>(arguments.size())), &result);
  if (const auto single = result.as<ffi::Tensor>()) return {*single};
  const auto several = result.cast<ffi::Array<ffi::Tensor>>();
  return {several.begin(), several.end()};
}

int Run(const std::string& folder, const std::string& inputs, const std::string& outputs,
        int threads, int repeats) {
  const Manifest manifest(folder);
  SafetensorsFile given(inputs), weights(folder + "/weights.safetensors");
  std::vector<ffi::Tensor> values = LoadInputs(manifest, &given);
  for (const std::string& name : manifest.parameters) values.push_back(Load(&weights, name));
  UseThreads(threads);
  const ffi::Function main = LoadMain(folder + "/module.so");

  std::vector<ffi::Tensor> results;
  std::vector<double> milliseconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    results = Call(main, values);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    milliseconds.push_back(took.count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::vector<std::pair<std::string, const DLTensor*>> named;
  for (size_t i = 0; i < manifest.outputs.size(); ++i)
    named.emplace_back(manifest.outputs[i].name, results.at(i).GetDLTensorPtr());
  WriteSafetensors(outputs, named);
  std::cout << named.size() << " outputs; median of " << repeats << " calls on " << threads
            << " threads: " << milliseconds[milliseconds.size() / 2] << " ms\n";
  return 0;
}

int Number(int count, char** arguments, int position) {
  const int number = position < count ? std::atoi(arguments[position]) : 1;
  if (number < 1) throw std::runtime_error("THREADS and REPEATS are numbers from 1");
  return number;
}

int main(int count, char** arguments) {
  if (count < 4 || count > 6) {
    std::cerr << "usage: run ARTIFACT INPUTS.safetensors OUTPUTS.safetensors [THREADS [REPEATS]]\n";
    return 2;
  }
  setenv("TVM_BIND_THREADS", "0", 0);  // else the first call pins this thread to one core
  try {
    return Run(arguments[1], arguments[2], arguments[3], Number(count, arguments, 4),
               Number(count, arguments, 5));
  } catch (const ffi::Error& error) {
    std::cerr << "run: TVM: " << error.kind() << ": " << error.message() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "run: " << error.what() << "\n";
  }
  return 1;
}
