// What happened to each cell of memory so far, and whether the present access may follow it.
//
// Two accesses of different threads, one of them a write, need something that orders them: a threadgroup barrier for
// that memory, or, inside one simdgroup, a simdgroup barrier. Groups of a dispatch are never ordered. So what is
// reported does not depend on the schedule.
#include <algorithm>
#include "runtime.h"

namespace runtime {

static uint32_t group_epoch(const Region* r) { return r->threadgroup ? g.epoch.threadgroup : g.epoch.device; }
static uint32_t simd_epoch(const Region* r, const Fiber& f) {
  return r->threadgroup ? f.simd_epoch.threadgroup : f.simd_epoch.device;
}

static bool ordered(const Region* r, const Stamp& earlier, const Fiber& now) {
  if (earlier.group != g.group) return false;
  if (earlier.epoch < group_epoch(r)) return true;
  if (earlier.thread == now.index) return true;
  return earlier.simdgroup == now.simdgroup && earlier.simd_epoch < simd_epoch(r, now);
}

static bool conflicts(const Region* r, const Stamp& earlier, const Fiber& now, bool atomic) {
  return earlier.epoch && !(atomic && earlier.atomic) && !ordered(r, earlier, now);
}

static Stamp stamp_of(const Region* r, const Fiber& f, bool atomic) {
  return {group_epoch(r), simd_epoch(r, f), g.group, (uint16_t)f.index, (uint8_t)f.simdgroup, atomic};
}

static bool same_simdgroup(const Stamp& a, const Stamp& b) { return a.group == b.group && a.simdgroup == b.simdgroup; }

// Readers of one simdgroup share a stamp: the latest, marked if several threads read since the simdgroup's last barrier
static void note_read(Cell& cell, const Stamp& now) {
  for (Stamp& s : cell.read) {
    if (!s.epoch || !same_simdgroup(s, now)) continue;
    bool together = s.epoch == now.epoch && s.simd_epoch == now.simd_epoch;
    bool atomic = together ? s.atomic && now.atomic : now.atomic;
    bool many = together && s.thread != now.thread;
    s = now;
    s.atomic = atomic;
    if (many) s.thread = kManyThreads;
    return;
  }
  for (Stamp& s : cell.read) {
    if (s.epoch && !(s.group == now.group && s.epoch < now.epoch)) continue;
    s = now;
    return;
  }
  cell.read[1] = now;
}

static void note_write(Cell& cell, const Stamp& now) {
  cell.write = now;
  cell.read[0].epoch = 0;
  cell.read[1].epoch = 0;
  cell.initialised = true;
}

static void report_race(const Region* r, size_t cell, const Stamp& other, bool write, void* code) {
  if (other.group != g.group) {
    report(DATA_RACE, code, "%s of byte %zu of %s conflicts with an access by another threadgroup",
           write ? "write" : "read", cell << r->cell_shift, r->name.c_str());
  } else if (other.thread == kManyThreads) {
    report(DATA_RACE, code, "%s of byte %zu of %s conflicts with unordered accesses by simdgroup %u",
           write ? "write" : "read", cell << r->cell_shift, r->name.c_str(), other.simdgroup);
  } else {
    report(DATA_RACE, code, "%s of byte %zu of %s conflicts with an unordered access by thread %u",
           write ? "write" : "read", cell << r->cell_shift, r->name.c_str(), other.thread);
  }
}

static void access_cells(Region* r, size_t first, size_t last, bool write, bool atomic, const Fiber& f, void* code) {
  const Stamp now = stamp_of(r, f, atomic);
  for (size_t c = first; c <= last; c++) {
    Cell& cell = r->cells[c];
    if (conflicts(r, cell.write, f, atomic)) report_race(r, c, cell.write, write, code);
    if (write) {
      for (const Stamp& s : cell.read) {
        if (conflicts(r, s, f, atomic)) report_race(r, c, s, write, code);
      }
      cell.writes += cell.writes != UINT16_MAX;
      note_write(cell, now);
    } else {
      if (!cell.initialised)
        report(UNINITIALISED_READ, code, "read of byte %zu of %s", c << r->cell_shift, r->name.c_str());
      cell.reads += cell.reads != UINT16_MAX;
      note_read(cell, now);
    }
  }
}

// An address in no buffer and no threadgroup variable
static void access_elsewhere(const char* p, size_t bytes, bool write, void* code) {
  if (in_code(p)) {
    if (write) report(READ_ONLY_WRITE, code, "write of %zu bytes to constant data of the program", bytes);
    if (constant_bytes_valid(p, bytes)) return;
    report(OUT_OF_BOUNDS, code, "%s of %zu bytes past an array of constant data", write ? "write" : "read", bytes);
  } else if (p >= g.stacks && p < g.stacks + kMaxThreads * kStackBytes) {
    report(PRIVATE_MEMORY, code, "%s of %zu bytes of another thread's private memory", write ? "write" : "read", bytes);
  } else {
    report(WILD_ACCESS, code, "%s of %zu bytes at address %p", write ? "write" : "read", bytes, (const void*)p);
  }
  stop();
  leave();
}

// The region of an access inside its bounds; null for constants. Anything else ends the dispatch.
Region* locate(const char* p, size_t bytes, bool write, void* code) {
  Region* r = find_region(p);
  if (!r) {
    access_elsewhere(p, bytes, write, code);
    return nullptr;
  }
  if (p >= r->begin && p + bytes <= r->end) return r;
  report(OUT_OF_BOUNDS, code, "%s of %zu bytes at byte %ld of %s, which has %ld", write ? "write" : "read", bytes,
         (long)(p - r->begin), r->name.c_str(), (long)(r->end - r->begin));
  stop();
  leave();
}

// together: by all lanes of the simdgroup at once, so that what any one of them wrote must have been ordered
void access(const void* address, size_t bytes, bool write, bool atomic, void* code, bool together) {
  const char* p = (const char*)address;
  if (on_own_stack(p)) {
    if (!g.options.private_bounds || private_bytes_valid(p, bytes)) return;
    report(PRIVATE_MEMORY, code, "%s of %zu bytes outside a private array or variable", write ? "write" : "read",
           bytes);
    stop();
    leave();
  }
  Region* r = locate(p, bytes, write, code);
  if (!r) return;
  if (write && r->read_only) report(READ_ONLY_WRITE, code, "write of %zu bytes to %s", bytes, r->name.c_str());
  (write ? r->bytes_written : r->bytes_read) += bytes;
  size_t offset = p - r->begin;
  const size_t first = offset >> r->cell_shift;
  const size_t last = (offset + bytes - 1) >> r->cell_shift;
  if (together) {
    Fiber all = current_fiber();
    all.index = kManyThreads;
    access_cells(r, first, last, write, atomic, all, code);
  } else {
    access_cells(r, first, last, write, atomic, current_fiber(), code);
  }
}

}  // namespace runtime

extern "C" void metal_emulator_atomic_access(const volatile void* address, unsigned bytes, bool read, bool write) {
  void* code = __builtin_return_address(0);
  if (read) runtime::access((const void*)address, bytes, false, true, code);
  if (write) runtime::access((const void*)address, bytes, true, true, code);
}
