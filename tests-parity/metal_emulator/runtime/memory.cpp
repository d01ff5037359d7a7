// Regions: device buffers and threadgroup variables. Each has addresses around it that only its own stray indices
// reach.
#include <sys/mman.h>
#include <algorithm>
#include <cstring>
#include "runtime.h"

namespace runtime {

static bool reaches(const Region* r, const char* p) { return p >= r->reach_begin && p < r->reach_end; }

// The region that an address belongs to or strays from; null for anything else
Region* find_region(const char* p) {
  if (g.last_region && reaches(g.last_region, p)) return g.last_region;
  for (Region* r : g.variables) {
    if (reaches(r, p)) return g.last_region = r;
  }
  for (Region* r : g.buffers) {
    if (reaches(r, p)) return g.last_region = r;
  }
  return nullptr;
}

bool in_code(const char* p) { return p >= g.code_begin && p < g.code_end; }

void free_variables() {
  for (Region* r : g.variables) {
    g.result->threadgroup_bytes_read += r->bytes_read;
    g.result->threadgroup_bytes_written += r->bytes_written;
    delete r;
  }
  g.variables.clear();
  g.last_region = nullptr;
}

static size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Variables lie in the arena with red zones between them, no better aligned than asked for. They start as NaN.
static Region* new_variable(const void* key, size_t bytes, size_t alignment, const char* name) {
  g.threadgroup_bytes = round_up(g.threadgroup_bytes, std::max<size_t>(alignment, 4)) + bytes;
  g.result->threadgroup_bytes = std::max<uint64_t>(g.result->threadgroup_bytes, g.threadgroup_bytes);
  if (g.threadgroup_bytes > g.options.threadgroup_limit || g.arena_used + bytes + 2 * kRedZone + 32 > kArenaBytes) {
    report(THREADGROUP_MEMORY, nullptr, "%zu bytes of threadgroup memory, %s included, exceed %u", g.threadgroup_bytes,
           name, g.options.threadgroup_limit);
    stop();
    return nullptr;
  }
  Region* r = new Region();
  r->reach_begin = g.arena + g.arena_used;
  r->begin = r->reach_begin + kRedZone;
  if (alignment < 16) r->begin += alignment;
  r->end = r->begin + bytes;
  g.arena_used = round_up(g.arena_used + kRedZone + bytes + 16, kRedZone);
  r->reach_end = g.arena + g.arena_used;
  r->cell_shift = bytes % 2 == 0 ? 1 : 0;
  r->threadgroup = true;
  r->read_only = false;
  r->key = key;
  r->name = name;
  r->cells.resize((bytes >> r->cell_shift) + 1);
  memset(r->begin, 0xFF, bytes);
  // an access past the last variable is a fault of that variable, up to the arena's end
  for (Region* other : g.variables) other->reach_end = std::min(other->reach_end, r->reach_begin);
  r->reach_end = g.arena + kArenaBytes;
  g.variables.push_back(r);
  return r;
}

void begin_group_memory() {
  static char keys[32];
  free_variables();
  if (!g.arena)
    g.arena =
        (char*)mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  g.arena_used = 0;
  g.threadgroup_bytes = 0;
  for (size_t i = 0; i < g.argument_bytes.size(); i++) {
    if (!g.argument_bytes[i]) continue;
    Region* r = new_variable(&keys[i], g.argument_bytes[i], 16, "[[threadgroup]] argument");
    if (!r) return;
    g.argument_memory[i] = r->begin;
  }
}

}  // namespace runtime

using namespace runtime;

// The first thread that reaches a declaration makes the variable for the whole group
extern "C" void* metal_emulator_threadgroup_variable(const void* key, unsigned long bytes, unsigned alignment,
                                                     const char* name) {
  for (Region* r : g.variables) {
    if (r->key == key) return r->begin;
  }
  Region* r = new_variable(key, bytes, alignment, name);
  if (!r) leave();
  return r->begin;
}
