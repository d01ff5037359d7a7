// Hooks that clang's instrumentation calls before each access of a kernel to memory.
//
// Kernels are compiled with the instrumentation of the thread sanitizer, or, with sanitizer="address", of the address
// sanitizer; these functions stand in for the sanitizers' own runtime libraries, which are not linked.
#include <cstring>
#include "runtime.h"

using runtime::access;
using runtime::report;

#define HERE __builtin_return_address(0)

// Code that was compiled for an aligned access got an address that is not
static void check_alignment(const void* p, size_t bytes, void* code) {
  size_t promised = bytes < 8 ? bytes : 8;
  if ((uintptr_t)p % promised == 0) return;
  report(runtime::MISALIGNED, code, "access of %zu bytes at an address that is %zu off", bytes,
         (uintptr_t)p % promised);
}

#define THREAD_HOOKS(N)                                                                   \
  extern "C" void __tsan_read##N(void* p) {                                               \
    check_alignment(p, N, HERE);                                                          \
    access(p, N, false, false, HERE);                                                     \
  }                                                                                       \
  extern "C" void __tsan_write##N(void* p) {                                              \
    check_alignment(p, N, HERE);                                                          \
    access(p, N, true, false, HERE);                                                      \
  }                                                                                       \
  extern "C" void __tsan_unaligned_read##N(void* p) { access(p, N, false, false, HERE); } \
  extern "C" void __tsan_unaligned_write##N(void* p) { access(p, N, true, false, HERE); }
THREAD_HOOKS(1)
THREAD_HOOKS(2)
THREAD_HOOKS(4)
THREAD_HOOKS(8)
THREAD_HOOKS(16)

#define ADDRESS_HOOKS(N)                                                        \
  extern "C" void __asan_load##N(void* p) { access(p, N, false, false, HERE); } \
  extern "C" void __asan_store##N(void* p) { access(p, N, true, false, HERE); }
ADDRESS_HOOKS(1)
ADDRESS_HOOKS(2)
ADDRESS_HOOKS(4)
ADDRESS_HOOKS(8)
ADDRESS_HOOKS(16)
extern "C" void __asan_loadN(void* p, size_t bytes) { access(p, bytes, false, false, HERE); }
extern "C" void __asan_storeN(void* p, size_t bytes) { access(p, bytes, true, false, HERE); }

static void* copy(void* to, const void* from, size_t bytes, void* code) {
  if (bytes) {
    access(from, bytes, false, false, code);
    access(to, bytes, true, false, code);
  }
  return memmove(to, from, bytes);
}

static void* fill(void* to, int value, size_t bytes, void* code) {
  if (bytes) access(to, bytes, true, false, code);
  return memset(to, value, bytes);
}

extern "C" {
void* __tsan_memcpy(void* to, const void* from, size_t bytes) { return copy(to, from, bytes, HERE); }
void* __tsan_memmove(void* to, const void* from, size_t bytes) { return copy(to, from, bytes, HERE); }
void* __tsan_memset(void* to, int value, size_t bytes) { return fill(to, value, bytes, HERE); }
void* __asan_memcpy(void* to, const void* from, size_t bytes) { return copy(to, from, bytes, HERE); }
void* __asan_memmove(void* to, const void* from, size_t bytes) { return copy(to, from, bytes, HERE); }
void* __asan_memset(void* to, int value, size_t bytes) { return fill(to, value, bytes, HERE); }

void __tsan_init() {}
void __asan_init() {}
void __asan_version_mismatch_check_v8() {}
void __asan_handle_no_return() {}
}
