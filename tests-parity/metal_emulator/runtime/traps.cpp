// Undefined behaviour: clang's checks in the build with sanitizer="undefined", and processor traps in any build.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "runtime.h"

using namespace runtime;

static void undefined(const char* what, void* code) {
  report(UNDEFINED_BEHAVIOUR, code, "%s", what);
  stop();
  leave();
}

// The checks call these when they fail
#define UNDEFINED(NAME, WHAT) \
  extern "C" void __ubsan_handle_##NAME##_minimal() { undefined(WHAT, __builtin_return_address(0)); }
UNDEFINED(add_overflow, "signed integer overflow in an addition")
UNDEFINED(sub_overflow, "signed integer overflow in a subtraction")
UNDEFINED(mul_overflow, "signed integer overflow in a multiplication")
UNDEFINED(negate_overflow, "signed integer overflow in a negation")
UNDEFINED(divrem_overflow, "integer division by zero or overflow in a division")
UNDEFINED(shift_out_of_bounds, "shift by a negative or too large amount")
UNDEFINED(out_of_bounds, "index outside an array of known size")
UNDEFINED(type_mismatch, "null or misaligned pointer")
UNDEFINED(pointer_overflow, "pointer arithmetic overflow")
UNDEFINED(float_cast_overflow, "conversion of a float to an integer that cannot hold it")

namespace runtime {

static struct sigaction previous_fpe;
static struct sigaction previous_segv;
static stack_t previous_stack;
static char* trap_stack = nullptr;
constexpr size_t kTrapStackBytes = 64 << 10;

static int trapped_signal;
static char* trapped_address;
static void* trapped_code;

// Runs on a stack of its own (the fiber's may be full) after the signal handler has returned
static void report_trap() {
  if (trapped_signal == SIGFPE) {
    undefined("integer division by zero", trapped_code);
  }
  const Fiber& f = current_fiber();
  if (trapped_address >= f.stack && trapped_address < f.stack + kPage) {
    report(PRIVATE_MEMORY, trapped_code, "the private memory of a thread exceeds %zu bytes", kStackBytes);
  } else if (find_region(trapped_address)) {
    locate(trapped_address, 1, false, trapped_code);
  } else {
    report(WILD_ACCESS, trapped_code, "access at address %p, or a misaligned vector access", (void*)trapped_address);
  }
  stop();
  leave();
}

static void on_signal(int signal, siginfo_t* info, void* context) {
  ucontext_t* u = (ucontext_t*)context;
  trapped_signal = signal;
  trapped_address = (char*)info->si_addr;
  trapped_code = (char*)u->uc_mcontext.gregs[REG_RIP] + 1;
  u->uc_mcontext.gregs[REG_RSP] = (greg_t)(trap_stack + kTrapStackBytes - 64 - 8);
  u->uc_mcontext.gregs[REG_RIP] = (greg_t)report_trap;
}

void catch_traps() {
  constexpr size_t kSignalStackBytes = 64 << 10;
  static char* signal_stack = nullptr;
  if (!trap_stack) {
    trap_stack = (char*)mmap(nullptr, kTrapStackBytes + kSignalStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    signal_stack = trap_stack + kTrapStackBytes;
  }
  stack_t alternative = {};
  alternative.ss_sp = signal_stack;
  alternative.ss_size = kSignalStackBytes;
  sigaltstack(&alternative, &previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGFPE, &action, &previous_fpe);
  sigaction(SIGSEGV, &action, &previous_segv);
}

void release_traps() {
  sigaction(SIGFPE, &previous_fpe, nullptr);
  sigaction(SIGSEGV, &previous_segv, nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace runtime
