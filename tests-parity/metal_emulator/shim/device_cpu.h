// Lanes of a simdgroup on the CPU: every operation is a rendezvous in the runtime
#pragma once
#include "../runtime/interface.h"

namespace metal_emulator {

METAL_FUNC unsigned lane() { return metal_emulator_lane(); }

template <class T>
METAL_FUNC T shuffle(T v, unsigned source_lane, metal_emulator_site site) {
  metal_emulator_shuffle(&v, sizeof(T), source_lane, site);
  return v;
}

template <class T, class OPERATION>
METAL_EMULATOR_UNCHECKED void combine(void* a, const void* b) {
  *(T*)a = OPERATION::apply(*(T*)a, *(const T*)b);
}

template <class OPERATION, class T>
METAL_FUNC T reduce(T v, metal_emulator_site site) {
  metal_emulator_reduce(&v, sizeof(T), &combine<T, OPERATION>, site);
  return v;
}

template <class OPERATION, class T>
METAL_FUNC T prefix(T v, T identity, bool inclusive, metal_emulator_site site) {
  bool first = lane() == 0;
  metal_emulator_prefix(&v, sizeof(T), &combine<T, OPERATION>, inclusive, site);
  return first && !inclusive ? identity : v;
}

METAL_FUNC ulong ballot(bool vote, metal_emulator_site site) { return metal_emulator_ballot(vote, site); }
METAL_FUNC ulong active_lanes(metal_emulator_site site) { return metal_emulator_active_lanes(site); }
METAL_FUNC void matrix_access(metal_emulator_site site) { metal_emulator_matrix_access(site); }
METAL_FUNC void threadgroup_barrier(int flags, metal_emulator_site site) {
  metal_emulator_threadgroup_barrier(flags, site);
}
METAL_FUNC void simdgroup_barrier(int flags, metal_emulator_site site) {
  metal_emulator_simdgroup_barrier(flags, site);
}

// d = a * b + c: each lane gives and gets its two elements
METAL_FUNC void matrix_multiply(thread float* d, const thread float* a, const thread float* b, const thread float* c,
                                metal_emulator_site site) {
  metal_emulator_matrix_multiply(d, a, b, c, site);
}

template <class T, class CHANGE>
METAL_EMULATOR_UNCHECKED inline T unchecked_change(volatile T* p, CHANGE change) {
  T old = *p;
  *p = change(old);
  return old;
}

template <class T>
METAL_EMULATOR_UNCHECKED inline T unchecked_read(const volatile T* p) {
  return *p;
}

// Read-modify-write of an atomic; `change` maps the old value to the new one
template <class T, class CHANGE>
METAL_FUNC T atomic_change(volatile T* p, CHANGE change, bool reads = true) {
  metal_emulator_atomic_access(p, sizeof(T), reads, true);
  return unchecked_change(p, change);
}

template <class T>
METAL_FUNC T atomic_read(const volatile T* p) {
  metal_emulator_atomic_access(p, sizeof(T), true, false);
  return unchecked_read(p);
}

}  // namespace metal_emulator
