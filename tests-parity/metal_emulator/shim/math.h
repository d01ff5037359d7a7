// <metal_math>: float and half in, the same type out; bfloat and integers go through float (there is no double).
// precise:: and fast:: are the same functions here.
#pragma once
#include "math_backend.h"

namespace metal_emulator {
template <class T>
constexpr bool promotes = __is_integral(T) || metal::is_same_v<T, bfloat>;
template <class A, class B>
constexpr bool promote = is_scalar<A> && is_scalar<B> && !(metal::is_same_v<A, half> && metal::is_same_v<B, half>) &&
                         !(metal::is_same_v<A, float> && metal::is_same_v<B, float>);
}  // namespace metal_emulator

#define METAL_EMULATOR_UNARY(NAME, FUNCTION)                                          \
  METAL_FUNC float NAME(float x) { return FUNCTION(x); }                              \
  METAL_FUNC half NAME(half x) { return (half)FUNCTION((float)x); }                   \
  template <class T, class = enable_if_t<metal_emulator::promotes<T>>>                \
  METAL_FUNC float NAME(T x) {                                                        \
    return FUNCTION((float)x);                                                        \
  }                                                                                   \
  template <class A, class = enable_if_t<metal_emulator::is_vector<A>>, class = void> \
  METAL_FUNC metal_emulator::value<A> NAME(const A& a) {                              \
    metal_emulator::value<A> x = a;                                                   \
    for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = NAME(x.data[i]);   \
    return x;                                                                         \
  }

// A function of two numbers for vectors, element by element
#define METAL_EMULATOR_ELEMENTWISE(NAME)                                                    \
  template <class A, class B, class = enable_if_t<metal_emulator::fit<A, B>>, class = void> \
  METAL_FUNC metal_emulator::joined<A, B> NAME(const A& a, const B& b) {                    \
    metal_emulator::joined<A, B> x = a;                                                     \
    metal_emulator::joined<A, B> y = b;                                                     \
    for (int i = 0; i < metal_emulator::width<metal_emulator::joined<A, B>>; i++) {         \
      x.data[i] = NAME(x.data[i], y.data[i]);                                               \
    }                                                                                       \
    return x;                                                                               \
  }

#define METAL_EMULATOR_BINARY(NAME, FUNCTION)                                         \
  METAL_FUNC float NAME(float x, float y) { return FUNCTION(x, y); }                  \
  METAL_FUNC half NAME(half x, half y) { return (half)FUNCTION((float)x, (float)y); } \
  template <class A, class B, class = enable_if_t<metal_emulator::promote<A, B>>>     \
  METAL_FUNC float NAME(A x, B y) {                                                   \
    return FUNCTION((float)x, (float)y);                                              \
  }                                                                                   \
  METAL_EMULATOR_ELEMENTWISE(NAME)

#define METAL_EMULATOR_FMA                                                                                      \
  METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }                           \
  METAL_FUNC half fma(half a, half b, half c) { return (half)__builtin_fmaf(a, b, c); }                         \
  template <class A, class = enable_if_t<metal_emulator::is_vector<A>>>                                         \
  METAL_FUNC metal_emulator::value<A> fma(const A& a, metal_emulator::value<A> b, metal_emulator::value<A> c) { \
    metal_emulator::value<A> x = a;                                                                             \
    for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = fma(x.data[i], b.data[i], c.data[i]);        \
    return x;                                                                                                   \
  }

#define METAL_EMULATOR_MATH                         \
  METAL_EMULATOR_UNARY_MATH(METAL_EMULATOR_UNARY)   \
  METAL_EMULATOR_BINARY_MATH(METAL_EMULATOR_BINARY) \
  METAL_EMULATOR_FMA

namespace metal {

METAL_EMULATOR_MATH
namespace precise {
METAL_EMULATOR_MATH
}
namespace fast {
METAL_EMULATOR_MATH
}

METAL_FUNC float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
METAL_FUNC float frexp(float x, thread int& e) { return __builtin_frexpf(x, (int*)&e); }

template <class T>
METAL_FUNC bool isnan(T x) {
  return __builtin_isnan((float)x);
}
template <class T>
METAL_FUNC bool isinf(T x) {
  return __builtin_isinf((float)x);
}
template <class T>
METAL_FUNC bool isfinite(T x) {
  return __builtin_isfinite((float)x);
}
template <class T>
METAL_FUNC bool signbit(T x) {
  return __builtin_signbit((float)x);
}

}  // namespace metal
#undef METAL_EMULATOR_MATH
#undef METAL_EMULATOR_FMA
#undef METAL_EMULATOR_UNARY
#undef METAL_EMULATOR_BINARY
