// Names that MLX's prelude uses, most of them compiler-internal (bf16_math.h); nothing of our own uses them
#pragma once

namespace metal {

struct os_log;  // since Metal 3.2 MLX gives it another name, and logs nothing in these kernels

#define METAL_EMULATOR_UNARY(NAME, FUNCTION) \
  METAL_FUNC float __metal_##NAME(float x, bool) { return FUNCTION(x); }
#define METAL_EMULATOR_BINARY(NAME, FUNCTION) \
  METAL_FUNC float __metal_##NAME(float x, float y, bool = false) { return FUNCTION(x, y); }
METAL_EMULATOR_UNARY_MATH(METAL_EMULATOR_UNARY)
METAL_EMULATOR_BINARY_MATH(METAL_EMULATOR_BINARY)
#undef METAL_EMULATOR_UNARY
#undef METAL_EMULATOR_BINARY

METAL_FUNC float __metal_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
METAL_FUNC float __metal_fmax3(float a, float b, float c, bool) { return max3(a, b, c); }
METAL_FUNC float __metal_fmin3(float a, float b, float c, bool) { return min3(a, b, c); }
METAL_FUNC float __metal_fmedian3(float a, float b, float c, bool) { return median3(a, b, c); }
METAL_FUNC float __metal_ldexp(float x, int e, bool) { return ldexp(x, e); }
METAL_FUNC float __metal_frexp(float x, thread int* e) { return __builtin_frexpf(x, (int*)e); }

METAL_FUNC ushort __metal_get_simdgroup_size(ushort) { return 32; }
METAL_FUNC ushort __metal_get_thread_index_in_simdgroup(ushort) { return (ushort)metal_emulator::lane(); }

#define METAL_EMULATOR_REDUCTION(NAME)                    \
  template <class T>                                      \
  METAL_FUNC T __metal_##NAME(T v, METAL_EMULATOR_SITE) { \
    return NAME(v, site);                                 \
  }
METAL_EMULATOR_REDUCTION(simd_sum)
METAL_EMULATOR_REDUCTION(simd_product)
METAL_EMULATOR_REDUCTION(simd_max)
METAL_EMULATOR_REDUCTION(simd_min)
METAL_EMULATOR_REDUCTION(simd_prefix_inclusive_sum)
METAL_EMULATOR_REDUCTION(simd_prefix_exclusive_sum)
METAL_EMULATOR_REDUCTION(simd_prefix_inclusive_product)
METAL_EMULATOR_REDUCTION(simd_prefix_exclusive_product)
#undef METAL_EMULATOR_REDUCTION

// MLX names it for float, without ever calling it
template <class T>
METAL_FUNC T __metal_simd_xor(T v, METAL_EMULATOR_SITE) {
  if constexpr (__is_integral(T)) {
    return simd_xor(v, site);
  } else {
    __builtin_trap();
  }
}

#define METAL_EMULATOR_SHUFFLE(NAME)                                \
  template <class T>                                                \
  METAL_FUNC T __metal_##NAME(T v, ushort n, METAL_EMULATOR_SITE) { \
    return NAME(v, n, site);                                        \
  }
METAL_EMULATOR_SHUFFLE(simd_broadcast)
METAL_EMULATOR_SHUFFLE(simd_shuffle)
METAL_EMULATOR_SHUFFLE(simd_shuffle_xor)
METAL_EMULATOR_SHUFFLE(simd_shuffle_up)
METAL_EMULATOR_SHUFFLE(simd_shuffle_down)
METAL_EMULATOR_SHUFFLE(simd_shuffle_rotate_up)
METAL_EMULATOR_SHUFFLE(simd_shuffle_rotate_down)
#undef METAL_EMULATOR_SHUFFLE

template <class T>
METAL_FUNC T __metal_simd_shuffle_and_fill_down(T v, T fill, ushort n, ushort modulo, METAL_EMULATOR_SITE) {
  return simd_shuffle_and_fill_down(v, fill, n, modulo, site);
}
template <class T>
METAL_FUNC T __metal_simd_shuffle_and_fill_up(T v, T fill, ushort n, ushort modulo, METAL_EMULATOR_SITE) {
  return simd_shuffle_and_fill_up(v, fill, n, modulo, site);
}

}  // namespace metal
