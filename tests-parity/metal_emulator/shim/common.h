// <metal_common>, <metal_integer>, <metal_geometric>, <metal_relational>
#pragma once

namespace metal {

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC constexpr T max(T a, T b) {
  if constexpr (is_same_v<T, float>) {
    return __builtin_fmaxf(a, b);
  } else {
    return a > b ? a : b;
  }
}

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC constexpr T min(T a, T b) {
  if constexpr (is_same_v<T, float>) {
    return __builtin_fminf(a, b);
  } else {
    return a < b ? a : b;
  }
}

// In Metal max(int, uint) and max(float, int) are ambiguous: errors here too
template <class A, class B,
          class = enable_if_t<metal_emulator::is_scalar<A> && metal_emulator::is_scalar<B> && !is_same_v<A, B>>>
void max(A, B) = delete;
template <class A, class B,
          class = enable_if_t<metal_emulator::is_scalar<A> && metal_emulator::is_scalar<B> && !is_same_v<A, B>>>
void min(A, B) = delete;

METAL_EMULATOR_ELEMENTWISE(max)
METAL_EMULATOR_ELEMENTWISE(min)
#undef METAL_EMULATOR_ELEMENTWISE

template <class T>
METAL_FUNC constexpr T max3(T a, T b, T c) {
  return max(max(a, b), c);
}
template <class T>
METAL_FUNC constexpr T min3(T a, T b, T c) {
  return min(min(a, b), c);
}
template <class T>
METAL_FUNC constexpr T median3(T a, T b, T c) {
  return max(min(a, b), min(max(a, b), c));
}

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC T abs(T a) {
  if constexpr (is_same_v<T, float>) {
    return __builtin_fabsf(a);
  } else {
    return a < T(0) ? T(-a) : a;
  }
}
template <class A, class = enable_if_t<metal_emulator::is_vector<A>>, class = void>
METAL_FUNC metal_emulator::value<A> abs(const A& a) {
  metal_emulator::value<A> x = a;
  for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = abs(x.data[i]);
  return x;
}

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC T clamp(T x, T lo, T hi) {
  return min(max(x, lo), hi);
}
template <class A, class = enable_if_t<metal_emulator::is_vector<A>>, class = void>
METAL_FUNC metal_emulator::value<A> clamp(const A& x, metal_emulator::value<A> lo, metal_emulator::value<A> hi) {
  return min(max(x, lo), hi);
}

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC T mix(T a, T b, T t) {
  return a + (b - a) * t;
}
template <class A, class = enable_if_t<metal_emulator::is_vector<A>>, class = void>
METAL_FUNC metal_emulator::value<A> mix(const A& a, metal_emulator::value<A> b, metal_emulator::value<A> t) {
  return a + (b - a) * t;
}

template <class T, class = enable_if_t<metal_emulator::is_scalar<T>>>
METAL_FUNC T select(T a, T b, bool c) {
  return c ? b : a;
}
template <class A, class = enable_if_t<metal_emulator::is_vector<A>>, class = void>
METAL_FUNC metal_emulator::value<A> select(const A& a, metal_emulator::value<A> b,
                                           vec<bool, metal_emulator::width<A>> c) {
  metal_emulator::value<A> x = a;
  for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = c.data[i] ? b.data[i] : x.data[i];
  return x;
}

template <class T>
METAL_FUNC T saturate(T x) {
  return clamp(x, T(0), T(1));
}
METAL_FUNC float sign(float x) { return x > 0 ? 1.0f : (x < 0 ? -1.0f : 0.0f); }
METAL_FUNC half sign(half x) { return (half)sign((float)x); }
METAL_FUNC float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }

template <class A, class B, class = enable_if_t<metal_emulator::is_vector<A> && metal_emulator::fit<A, B>>>
METAL_FUNC metal_emulator::element<A> dot(const A& a, const B& b) {
  metal_emulator::value<A> x = a;
  metal_emulator::value<A> y = b;
  metal_emulator::element<A> sum = x.data[0] * y.data[0];
  for (int i = 1; i < metal_emulator::width<A>; i++) sum += x.data[i] * y.data[i];
  return sum;
}
template <class A, class = enable_if_t<metal_emulator::is_vector<A>>>
METAL_FUNC metal_emulator::element<A> length(const A& a) {
  return sqrt(dot(a, a));
}

template <class T>
METAL_FUNC T popcount(T x) {
  return (T)__builtin_popcountll((__make_unsigned(T))x);
}
template <class T>
METAL_FUNC T clz(T x) {
  return x ? (T)(__builtin_clzll((__make_unsigned(T))x) - (64 - 8 * (int)sizeof(T))) : (T)(8 * sizeof(T));
}
template <class T>
METAL_FUNC T ctz(T x) {
  return x ? (T)__builtin_ctzll((__make_unsigned(T))x) : (T)(8 * sizeof(T));
}
METAL_FUNC uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
METAL_FUNC int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }

}  // namespace metal
