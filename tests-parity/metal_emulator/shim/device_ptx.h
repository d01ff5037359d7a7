// Lanes of a simdgroup on an NVIDIA GPU: a warp
#pragma once

namespace metal_emulator {

METAL_FUNC unsigned lane() { return __nvvm_read_ptx_sreg_laneid(); }

template <class T>
METAL_FUNC T shuffle(T v, unsigned source_lane, metal_emulator_site) {
  constexpr int words = (sizeof(T) + 3) / 4;
  int w[words] = {};
  __builtin_memcpy(w, &v, sizeof(T));
  for (int i = 0; i < words; i++) w[i] = __nvvm_shfl_sync_idx_i32(~0u, w[i], source_lane, 31);
  __builtin_memcpy(&v, w, sizeof(T));
  return v;
}

template <class OPERATION, class T>
METAL_FUNC T reduce(T v, metal_emulator_site site) {
  for (unsigned distance = 1; distance < 32; distance *= 2)
    v = OPERATION::apply(v, shuffle(v, lane() ^ distance, site));
  return v;
}

template <class OPERATION, class T>
METAL_FUNC T prefix(T v, T identity, bool inclusive, metal_emulator_site site) {
  T sum = identity;
  for (unsigned i = 0; i < 32; i++) {
    T other = shuffle(v, i, site);
    if (i < lane() + (inclusive ? 1 : 0)) sum = OPERATION::apply(sum, other);
  }
  return sum;
}

METAL_FUNC ulong ballot(bool vote, metal_emulator_site) { return (unsigned)__nvvm_vote_ballot_sync(~0u, vote); }
METAL_FUNC ulong active_lanes(metal_emulator_site) { return ~0u; }
METAL_FUNC void matrix_access(metal_emulator_site) {}
METAL_FUNC void threadgroup_barrier(int, metal_emulator_site) { asm volatile("bar.sync 0;" ::: "memory"); }
METAL_FUNC void simdgroup_barrier(int, metal_emulator_site) { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// Read-modify-write of an atomic by compare and swap of its 32 bits
template <class T, class CHANGE>
METAL_FUNC T atomic_change(volatile T* p, CHANGE change, bool = true) {
  static_assert(sizeof(T) == 4, "atomics of 32 bits only");
  int* bits = (int*)p;
  int seen = __scoped_atomic_load_n(bits, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
  for (;;) {
    int next = as_type<int>((T)change(as_type<T>(seen)));
    if (__scoped_atomic_compare_exchange_n(bits, &seen, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                           __MEMORY_SCOPE_DEVICE))
      return as_type<T>(seen);
  }
}

template <class T>
METAL_FUNC T atomic_read(const volatile T* p) {
  static_assert(sizeof(T) == 4, "atomics of 32 bits only");
  return as_type<T>(__scoped_atomic_load_n((int*)p, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE));
}

}  // namespace metal_emulator
