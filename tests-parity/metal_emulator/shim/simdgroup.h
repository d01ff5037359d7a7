// <metal_compute>, <metal_simdgroup>, <metal_quadgroup>: barriers, shuffles, reductions, votes.
// Values of 64 bits and bfloat are refused: Metal has no such simdgroup operations.
#pragma once

namespace metal {

enum class mem_flags {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }

METAL_FUNC void threadgroup_barrier(mem_flags flags, METAL_EMULATOR_SITE) {
  metal_emulator::threadgroup_barrier((int)flags, site);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, METAL_EMULATOR_SITE) {
  metal_emulator::simdgroup_barrier((int)flags, site);
}

}  // namespace metal

namespace metal_emulator {

template <class T>
constexpr bool simd_type = sizeof(element<T>) <= 4 && !metal::is_same_v<element<T>, bfloat>;

struct Sum {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return a + b;
  }
};
struct Product {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return a * b;
  }
};
struct Largest {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return metal::max(a, b);
  }
};
struct Smallest {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return metal::min(a, b);
  }
};
struct And {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  METAL_EMULATOR_UNCHECKED static T apply(T a, T b) {
    return a ^ b;
  }
};

}  // namespace metal_emulator

namespace metal {

#define METAL_EMULATOR_REDUCTION(NAME, OPERATION)                                        \
  template <class T>                                                                     \
  METAL_FUNC T NAME(T v, METAL_EMULATOR_SITE) {                                          \
    static_assert(metal_emulator::simd_type<T>, #NAME ": no 64-bit type and no bfloat"); \
    return metal_emulator::reduce<metal_emulator::OPERATION>(v, site);                   \
  }
METAL_EMULATOR_REDUCTION(simd_sum, Sum)
METAL_EMULATOR_REDUCTION(simd_product, Product)
METAL_EMULATOR_REDUCTION(simd_max, Largest)
METAL_EMULATOR_REDUCTION(simd_min, Smallest)
METAL_EMULATOR_REDUCTION(simd_and, And)
METAL_EMULATOR_REDUCTION(simd_or, Or)
METAL_EMULATOR_REDUCTION(simd_xor, Xor)
#undef METAL_EMULATOR_REDUCTION

// SOURCE: the lane to read, from `lane` and the argument `n`
#define METAL_EMULATOR_SHUFFLE(NAME, SOURCE)                                             \
  template <class T>                                                                     \
  METAL_FUNC T NAME(T v, ushort n, METAL_EMULATOR_SITE) {                                \
    static_assert(metal_emulator::simd_type<T>, #NAME ": no 64-bit type and no bfloat"); \
    [[maybe_unused]] unsigned lane = metal_emulator::lane();                             \
    return metal_emulator::shuffle(v, (SOURCE), site);                                   \
  }
METAL_EMULATOR_SHUFFLE(simd_shuffle, n)
METAL_EMULATOR_SHUFFLE(simd_broadcast, n)
METAL_EMULATOR_SHUFFLE(simd_shuffle_xor, lane ^ n)
METAL_EMULATOR_SHUFFLE(simd_shuffle_rotate_down, (lane + n) % 32)
METAL_EMULATOR_SHUFFLE(simd_shuffle_rotate_up, (lane + 32 - n) % 32)
// past the edge: the lane keeps its own value
METAL_EMULATOR_SHUFFLE(simd_shuffle_down, lane + n < 32 ? lane + n : lane)
METAL_EMULATOR_SHUFFLE(simd_shuffle_up, lane >= n ? lane - n : lane)
METAL_EMULATOR_SHUFFLE(quad_shuffle, lane / 4 * 4 + n % 4)
METAL_EMULATOR_SHUFFLE(quad_broadcast, lane / 4 * 4 + n % 4)
METAL_EMULATOR_SHUFFLE(quad_shuffle_xor, lane ^ (n % 4))
#undef METAL_EMULATOR_SHUFFLE

// past the edge of a block of `modulo` lanes: the value of `fill` on the other side
template <class T>
METAL_FUNC T simd_shuffle_and_fill_down(T v, T fill, ushort n, ushort modulo = 32, METAL_EMULATOR_SITE) {
  unsigned lane = metal_emulator::lane();
  unsigned source = lane / modulo * modulo + (lane % modulo + n) % modulo;
  T inside = metal_emulator::shuffle(v, source, site);
  T outside = metal_emulator::shuffle(fill, source, site);
  return lane % modulo + n < modulo ? inside : outside;
}
template <class T>
METAL_FUNC T simd_shuffle_and_fill_up(T v, T fill, ushort n, ushort modulo = 32, METAL_EMULATOR_SITE) {
  unsigned lane = metal_emulator::lane();
  unsigned source = lane / modulo * modulo + (lane % modulo + modulo - n) % modulo;
  T inside = metal_emulator::shuffle(v, source, site);
  T outside = metal_emulator::shuffle(fill, source, site);
  return lane % modulo >= n ? inside : outside;
}

template <class T>
METAL_FUNC T quad_sum(T v, METAL_EMULATOR_SITE) {
  v += metal_emulator::shuffle(v, metal_emulator::lane() ^ 1, site);
  return v + metal_emulator::shuffle(v, metal_emulator::lane() ^ 2, site);
}

template <class T>
METAL_FUNC T simd_prefix_inclusive_sum(T v, METAL_EMULATOR_SITE) {
  return metal_emulator::prefix<metal_emulator::Sum>(v, T(0), true, site);
}
template <class T>
METAL_FUNC T simd_prefix_exclusive_sum(T v, METAL_EMULATOR_SITE) {
  return metal_emulator::prefix<metal_emulator::Sum>(v, T(0), false, site);
}
template <class T>
METAL_FUNC T simd_prefix_inclusive_product(T v, METAL_EMULATOR_SITE) {
  return metal_emulator::prefix<metal_emulator::Product>(v, T(1), true, site);
}
template <class T>
METAL_FUNC T simd_prefix_exclusive_product(T v, METAL_EMULATOR_SITE) {
  return metal_emulator::prefix<metal_emulator::Product>(v, T(1), false, site);
}

struct simd_vote {
  ulong lanes;
  METAL_FUNC explicit operator ulong() const { return lanes; }
};
METAL_FUNC simd_vote simd_ballot(bool vote, METAL_EMULATOR_SITE) {
  return simd_vote{metal_emulator::ballot(vote, site)};
}
METAL_FUNC bool simd_any(bool vote, METAL_EMULATOR_SITE) { return metal_emulator::ballot(vote, site) != 0; }
METAL_FUNC bool simd_all(bool vote, METAL_EMULATOR_SITE) { return metal_emulator::ballot(!vote, site) == 0; }
METAL_FUNC bool simd_is_first(METAL_EMULATOR_SITE) {
  return metal_emulator::lane() == (unsigned)__builtin_ctzl(metal_emulator::active_lanes(site));
}
template <class T>
METAL_FUNC T simd_broadcast_first(T v, METAL_EMULATOR_SITE) {
  return metal_emulator::shuffle(v, (unsigned)__builtin_ctzl(metal_emulator::active_lanes(site)), site);
}

}  // namespace metal
