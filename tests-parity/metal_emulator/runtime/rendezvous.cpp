// Where threads wait for each other: threadgroup barriers and the operations of a simdgroup
#include <cstring>
#include "runtime.h"

namespace runtime {

static const char* operation_name(uint32_t operation) {
  switch (operation) {
    case SHUFFLE: return "a shuffle";
    case REDUCE: return "a reduction";
    case PREFIX: return "a prefix operation";
    case BALLOT: return "a vote";
    case SIMDGROUP_BARRIER: return "simdgroup_barrier";
    case MATRIX_ACCESS: return "a matrix load or store";
    case TENSOR_PRODUCT: return "matmul2d";
    case TENSOR_OPERATION: return "a tensor operation";
    default: return "a simdgroup_matrix multiplication";
  }
}

// METAL_EMULATOR_SITE of shim/language.h
static uint32_t line_of(uint32_t site) { return site / 1024; }

static void count_operation(uint32_t operation) {
  Result& r = *g.result;
  switch (operation) {
    case SIMDGROUP_BARRIER: r.simdgroup_barriers++; break;
    case MATRIX_ACCESS: r.matrix_accesses++; break;
    case MATRIX_MULTIPLY: r.matrix_multiplies++; break;
    case TENSOR_PRODUCT: r.tensor_products++; break;
    case TENSOR_OPERATION: break;
    default: r.simdgroup_operations++; break;
  }
}

// ---- simdgroup -----------------------------------------------------------------------------------------------------
// All live lanes wait: let them go on if they wait for the same operation
static void finish_simdgroup(uint32_t s) {
  Simdgroup& simd = g.simdgroups[s];
  uint32_t lanes[kLanes];
  uint32_t n = 0;
  uint32_t active = 0;
  const Waiting* first = nullptr;
  for (uint32_t i = s * kLanes; i < g.threads && i < (s + 1) * kLanes; i++) {
    Fiber& f = g.fibers[i];
    if (f.state != AT_SIMDGROUP_OPERATION) continue;
    if (first && !(f.waiting == *first)) {
      report_two(SIMDGROUP_DIVERGENCE, first->code, f.waiting.code,
                 "lane %u of simdgroup %u is at %s (line %u), lane %u at %s (line %u)", lanes[0] % kLanes, s,
                 operation_name(first->operation), line_of(first->site), f.lane, operation_name(f.waiting.operation),
                 line_of(f.waiting.site));
      stop();
      return;
    }
    if (!first) first = &f.waiting;
    active |= 1u << f.lane;
    lanes[n++] = i;
  }
  bool matrix = first->operation >= MATRIX_ACCESS;
  if (matrix && n != kLanes) {
    report(PARTIAL_SIMDGROUP, first->code, "%s with %u of 32 lanes", operation_name(first->operation), n);
    stop();
    return;
  }
  count_operation(first->operation);
  Exchange& e = simd.exchange[simd.turn];
  e.active = active;
  e.reduced = false;
  simd.turn ^= 1;
  simd.waiting = 0;
  release(lanes, n);
}

// Hands `value` to the other lanes and returns when all of them have handed over theirs
Exchange* meet(const void* value, unsigned bytes, Operation operation, uint32_t site, void* code) {
  Fiber& f = current_fiber();
  Simdgroup& simd = g.simdgroups[f.simdgroup];
  Exchange* e = &simd.exchange[simd.turn];
  memcpy(e->slot[f.lane], value, bytes);
  f.state = AT_SIMDGROUP_OPERATION;
  f.waiting = {operation, site, code};
  simd.waiting++;
  if (simd.waiting == simd.alive) finish_simdgroup(f.simdgroup);
  block();
  return e;
}

// ---- threadgroup ---------------------------------------------------------------------------------------------------
static void finish_barrier() {
  static uint32_t waiting[kMaxThreads];
  uint32_t n = 0;
  const Waiting* first = nullptr;
  for (uint32_t i = 0; i < g.threads; i++) {
    Fiber& f = g.fibers[i];
    if (f.state != AT_BARRIER) continue;
    if (first && !(f.waiting == *first)) {
      report_two(BARRIER_DIVERGENCE, first->code, f.waiting.code,
                 "threads %u and %u wait at different threadgroup barriers (lines %u and %u)", waiting[0], i,
                 line_of(first->site), line_of(f.waiting.site));
      stop();
      return;
    }
    if (!first) first = &f.waiting;
    waiting[n++] = i;
  }
  if (n != g.threads && !g.options.early_return) {
    report(BARRIER_DIVERGENCE, first->code, "threadgroup_barrier after %u of %u threads returned", g.threads - n,
           g.threads);
    stop();
    return;
  }
  if (g.barrier_flags & MEM_THREADGROUP) g.epoch.threadgroup++;
  if (g.barrier_flags & MEM_DEVICE) g.epoch.device++;
  g.barrier_flags = ~0;
  g.at_barrier = 0;
  g.result->barriers++;
  release(waiting, n);
}

void thread_returned(uint32_t simdgroup) {
  Simdgroup& simd = g.simdgroups[simdgroup];
  simd.alive--;
  if (simd.alive && simd.waiting == simd.alive) finish_simdgroup(simdgroup);
  if (!g.stopped && g.alive && g.at_barrier == g.alive) finish_barrier();
}

// No fiber can go on: some wait at a barrier, others for lanes that will not come
void report_deadlock() {
  uint32_t count[4] = {};
  const Fiber* at_barrier = nullptr;
  const Fiber* at_operation = nullptr;
  for (uint32_t i = 0; i < g.threads; i++) {
    const Fiber& f = g.fibers[i];
    count[f.state]++;
    if (f.state == AT_BARRIER && !at_barrier) at_barrier = &f;
    if (f.state == AT_SIMDGROUP_OPERATION && !at_operation) at_operation = &f;
  }
  report_two(SIMDGROUP_DIVERGENCE, at_operation ? at_operation->waiting.code : nullptr,
             at_barrier ? at_barrier->waiting.code : nullptr,
             "no thread can go on: %u at a simdgroup operation, %u at a threadgroup barrier, %u returned",
             count[AT_SIMDGROUP_OPERATION], count[AT_BARRIER], count[RETURNED]);
}

}  // namespace runtime

using namespace runtime;

extern "C" void metal_emulator_threadgroup_barrier(int flags, unsigned site) {
  Fiber& f = current_fiber();
  f.state = AT_BARRIER;
  f.waiting = {0, site, __builtin_return_address(0)};
  g.barrier_flags &= flags;
  g.at_barrier++;
  if (g.at_barrier == g.alive) finish_barrier();
  block();
}

extern "C" void metal_emulator_simdgroup_barrier(int flags, unsigned site) {
  char nothing = 0;
  meet(&nothing, 1, SIMDGROUP_BARRIER, site, __builtin_return_address(0));
  Fiber& f = current_fiber();
  if (flags & MEM_THREADGROUP) f.simd_epoch.threadgroup++;
  if (flags & MEM_DEVICE) f.simd_epoch.device++;
}
