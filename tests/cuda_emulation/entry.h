// How the driver calls a kernel: with pointers to its arguments, as cuLaunchKernelEx has them.
#pragma once

#include "scheduler.h"

#include <utility>

namespace emulation {

template <auto kernel>
struct Entry;

template <typename... Parameters, void (*kernel)(Parameters...)>
struct Entry<kernel> {
  static constexpr size_t count = sizeof...(Parameters);
  static constexpr size_t sizes[] = {sizeof(Parameters)..., 0};

  static void run(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>()); }

 private:
  template <size_t... index>
  static void call([[maybe_unused]] void** arguments, std::index_sequence<index...>) {
    kernel(*static_cast<Parameters*>(arguments[index])...);
  }
};

}  // namespace emulation

// Describes a kernel to the driver, under a name that dlsym finds. The linker names the ends of
// the section with the kernel's shared memory, where there is one.
#define EMULATED_KERNEL(kernel, most_threads)                                                  \
  extern "C" char __start_shared_##kernel[] __attribute__((weak, visibility("hidden")));       \
  extern "C" char __stop_shared_##kernel[] __attribute__((weak, visibility("hidden")));        \
  extern "C" __attribute__((visibility("default"))) emulation::Kernel emulated_##kernel = {    \
      #kernel,                                                                                 \
      emulation::Entry<kernel>::run,                                                           \
      emulation::Entry<kernel>::sizes,                                                         \
      emulation::Entry<kernel>::count,                                                         \
      __start_shared_##kernel,                                                                 \
      __stop_shared_##kernel,                                                                  \
      most_threads};
