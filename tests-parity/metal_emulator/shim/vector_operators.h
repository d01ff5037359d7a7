// Arithmetic, comparison and logic on vectors, component by component
#pragma once

namespace metal {

#define METAL_EMULATOR_ARITHMETIC(OP)                                                           \
  template <class A, class B, class = enable_if_t<metal_emulator::fit<A, B>>>                   \
  METAL_FUNC metal_emulator::joined<A, B> operator OP(const A& a, const B& b) {                 \
    using V = metal_emulator::joined<A, B>;                                                     \
    using T = metal_emulator::element<V>;                                                       \
    V x = a;                                                                                    \
    V y = b;                                                                                    \
    for (int i = 0; i < metal_emulator::width<V>; i++) x.data[i] = (T)(x.data[i] OP y.data[i]); \
    return x;                                                                                   \
  }                                                                                             \
  template <class T, int N, class B, class = enable_if_t<metal_emulator::fit<vec<T, N>, B>>>    \
  METAL_FUNC vec<T, N>& operator OP## = (vec<T, N> & a, const B& b) {                           \
    return a = a OP b;                                                                          \
  }
METAL_EMULATOR_ARITHMETIC(+)
METAL_EMULATOR_ARITHMETIC(-)
METAL_EMULATOR_ARITHMETIC(*)
METAL_EMULATOR_ARITHMETIC(/)
METAL_EMULATOR_ARITHMETIC(%)
METAL_EMULATOR_ARITHMETIC(&)
METAL_EMULATOR_ARITHMETIC(|)
METAL_EMULATOR_ARITHMETIC(^)
METAL_EMULATOR_ARITHMETIC(<<)
METAL_EMULATOR_ARITHMETIC(>>)
#undef METAL_EMULATOR_ARITHMETIC

#define METAL_EMULATOR_COMPARISON(OP)                                                                             \
  template <class A, class B, class = enable_if_t<metal_emulator::fit<A, B>>>                                     \
  METAL_FUNC vec<bool, metal_emulator::width<metal_emulator::joined<A, B>>> operator OP(const A& a, const B& b) { \
    using V = metal_emulator::joined<A, B>;                                                                       \
    V x = a;                                                                                                      \
    V y = b;                                                                                                      \
    vec<bool, metal_emulator::width<V>> r;                                                                        \
    for (int i = 0; i < metal_emulator::width<V>; i++) r.data[i] = x.data[i] OP y.data[i];                        \
    return r;                                                                                                     \
  }
METAL_EMULATOR_COMPARISON(<)
METAL_EMULATOR_COMPARISON(>)
METAL_EMULATOR_COMPARISON(<=)
METAL_EMULATOR_COMPARISON(>=)
METAL_EMULATOR_COMPARISON(==)
METAL_EMULATOR_COMPARISON(!=)
METAL_EMULATOR_COMPARISON(&&)
METAL_EMULATOR_COMPARISON(||)
#undef METAL_EMULATOR_COMPARISON

template <class A, class = enable_if_t<metal_emulator::is_vector<A>>>
METAL_FUNC metal_emulator::value<A> operator-(const A& a) {
  metal_emulator::value<A> x = a;
  for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = -x.data[i];
  return x;
}

template <class A, class = enable_if_t<metal_emulator::is_vector<A>>>
METAL_FUNC metal_emulator::value<A> operator~(const A& a) {
  metal_emulator::value<A> x = a;
  for (int i = 0; i < metal_emulator::width<A>; i++) x.data[i] = ~x.data[i];
  return x;
}

template <class A, class = enable_if_t<metal_emulator::is_vector<A>>>
METAL_FUNC vec<bool, metal_emulator::width<A>> operator!(const A& a) {
  metal_emulator::value<A> x = a;
  vec<bool, metal_emulator::width<A>> r;
  for (int i = 0; i < metal_emulator::width<A>; i++) r.data[i] = !x.data[i];
  return r;
}

template <int N>
METAL_FUNC bool any(vec<bool, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || v.data[i];
  return r;
}

template <int N>
METAL_FUNC bool all(vec<bool, N> v) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && v.data[i];
  return r;
}

}  // namespace metal
