// Faults of a kernel's threads, and accesses that only a GPU faults on.

#include "faults.h"

#include "scheduler.h"

#include <cstdio>
#include <cuda.h>
#include <sys/ucontext.h>
#include <unistd.h>

namespace emulation {

namespace {

pid_t launching;  // the host's thread that runs a grid, 0 for none
unsigned given_seconds;
char signal_stack[64 << 10] __attribute__((aligned(16)));
char fault_stack[4096] __attribute__((aligned(16)));

int time_signal() { return SIGRTMAX - 1; }

void handle_fault(int signal, siginfo_t* information, void* context) {
  if (gettid() != launching) return;
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  char text[128];
  if (signal == time_signal()) {
    snprintf(text, sizeof text, "does not end within %u seconds", given_seconds);
  } else if (signal == SIGFPE) {
    snprintf(text, sizeof text, "an integer is divided by zero");
  } else {
    snprintf(text, sizeof text, "an address out of bounds is used: %p", information->si_addr);
  }
  set_error(signal == time_signal() ? CUDA_ERROR_LAUNCH_TIMEOUT : CUDA_ERROR_ILLEGAL_ADDRESS, text);
  // The thread's own stack may be what overflowed.
  registers[REG_RSP] = reinterpret_cast<greg_t>(fault_stack + sizeof fault_stack - 8);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&return_to_launcher);
}

}  // namespace

FaultHandler::FaultHandler(unsigned seconds)
    : signals_{SIGSEGV, SIGBUS, SIGFPE, time_signal()} {
  launching = gettid();
  given_seconds = seconds;
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &stack_before_);
  struct sigaction action = {};
  action.sa_sigaction = handle_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(signals_[i], &action, &before_[i]);
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = time_signal();
  event._sigev_un._tid = launching;
  timer_create(CLOCK_MONOTONIC, &event, &timer_);
  itimerspec limit = {};
  limit.it_value.tv_sec = seconds;
  timer_settime(timer_, 0, &limit, nullptr);
}

FaultHandler::~FaultHandler() {
  timer_delete(timer_);
  launching = 0;
  for (int i = 0; i < 4; ++i) sigaction(signals_[i], &before_[i], nullptr);
  sigaltstack(&stack_before_, nullptr);
}

}  // namespace emulation

// --- What g++ calls where -fsanitize=alignment finds an access that a GPU would fault on ---

namespace {

struct SourceLocation {
  const char* file;
  unsigned line;
  unsigned column;
};

struct TypeDescriptor {
  unsigned short kind;
  unsigned short information;
  char name[1];
};

struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log2_alignment;
  unsigned char check;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1_abort(
    TypeMismatch* data, unsigned long address) {
  emulation::fail(CUDA_ERROR_MISALIGNED_ADDRESS,
                  "misaligned address 0x%lx for %s, which needs a multiple of %d, at line %u",
                  address, data->type->name, 1 << data->log2_alignment, data->location.line);
}
