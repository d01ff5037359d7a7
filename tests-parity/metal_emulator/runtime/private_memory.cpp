// Bounds of private arrays and variables, and of constant arrays of the program: the build with sanitizer="address".
//
// clang surrounds each with red zones and marks them in a shadow of one byte for eight (0: all are valid, 1 to 7:
// the first 1 to 7, otherwise none). Fiber stacks lie in one mapping, so its shadow is small and placed where the
// compiled code looks through __asan_shadow_memory_dynamic_address.
#include <sys/mman.h>
#include <cstring>
#include <vector>
#include "runtime.h"

extern "C" uintptr_t __asan_shadow_memory_dynamic_address;
uintptr_t __asan_shadow_memory_dynamic_address = 0;

namespace runtime {

constexpr size_t kShadowScale = 3;
constexpr size_t kShadowBytes = (kStackBytes * kMaxThreads) >> kShadowScale;

static unsigned char* shadow = nullptr;

// Fresh shadow for all stacks: a dispatch that was stopped leaves marks behind
void reset_private_memory() {
  if (shadow) munmap(shadow, kShadowBytes);
  shadow = (unsigned char*)mmap(nullptr, kShadowBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  __asan_shadow_memory_dynamic_address = (uintptr_t)shadow - ((uintptr_t)g.stacks >> kShadowScale);
}

static bool valid_byte(uintptr_t p) {
  unsigned char mark = *(unsigned char*)((p >> kShadowScale) + __asan_shadow_memory_dynamic_address);
  return mark == 0 || (mark < 8 && p % 8 < mark);
}

// `p` lies on the current fiber's stack
bool private_bytes_valid(const char* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    if (!valid_byte((uintptr_t)p + i)) return false;
  }
  return true;
}

// As clang lays it out
struct GlobalDescription {
  uintptr_t begin;
  uintptr_t bytes;
  uintptr_t bytes_with_red_zone;
  uintptr_t name;
  uintptr_t module_name;
  uintptr_t has_dynamic_init;
  uintptr_t location;
  uintptr_t odr_indicator;
};
static std::vector<const GlobalDescription*> globals;

bool constant_bytes_valid(const char* p, size_t bytes) {
  uintptr_t begin = (uintptr_t)p;
  for (const GlobalDescription* d : globals) {
    if (begin >= d->begin && begin < d->begin + d->bytes_with_red_zone) return begin + bytes <= d->begin + d->bytes;
  }
  return true;
}

}  // namespace runtime

extern "C" {
void __asan_register_elf_globals(uintptr_t*, void* start, void* stop) {
  auto* first = (runtime::GlobalDescription*)start;
  auto* last = (runtime::GlobalDescription*)stop;
  for (auto* d = first; d != last; d++) runtime::globals.push_back(d);
}
// Kernel libraries stay loaded for the life of the process
void __asan_unregister_elf_globals(uintptr_t*, void*, void*) {}

#define SET_SHADOW(VALUE) \
  void __asan_set_shadow_##VALUE(void* p, size_t bytes) { memset(p, 0x##VALUE, bytes); }
SET_SHADOW(00)
SET_SHADOW(01)
SET_SHADOW(02)
SET_SHADOW(03)
SET_SHADOW(04)
SET_SHADOW(05)
SET_SHADOW(06)
SET_SHADOW(07)
SET_SHADOW(f1)
SET_SHADOW(f2)
SET_SHADOW(f3)
SET_SHADOW(f5)
SET_SHADOW(f8)
}
