// Turns what the host would kill the process for into an error of the launch.
#pragma once

#include <csignal>
#include <ctime>
#include <string>

namespace emulation {

// While it lives, faults of this thread of the host, and the end of its time, end the launch.
class FaultHandler {
 public:
  explicit FaultHandler(unsigned seconds);
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  const int signals_[4];
  struct sigaction before_[4];
  stack_t stack_before_;
  timer_t timer_;
};

// The scheduler's: what the launch returns, and the way back to it from any thread of a block.
void set_error(int error, const std::string& reason);
[[noreturn]] void return_to_launcher();

}  // namespace emulation
