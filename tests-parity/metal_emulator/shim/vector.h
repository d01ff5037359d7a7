// Vectors: vec<T, 2..4>, their swizzles, packed vectors, as_type.
//
// A class template, not clang's own vector type: only scalar -> vector converts implicitly, as in Metal (half4 <->
// float4 has to be written out), and float4(v.xy, 1, 2) works in every compiler that the shim serves. vec<T, 3> is as
// large as vec<T, 4>; packed_vec<T, 3> is not. A swizzle of a swizzle (v.xyz.x) is not supported: a compile error.
#pragma once
#include "swizzles.h"  // written by swizzles.py: METAL_EMULATOR_SWIZZLES_{2,3,4}(T)

namespace metal {
template <class T, int N>
struct vec;
template <class T, int STORED, int... INDEX>
struct swizzle;
}  // namespace metal

namespace metal_emulator {

// The type without its address space
template <class A>
struct without_space {
  using type = A;
};
#if defined(METAL_EMULATOR_STRICT)
template <class A>
struct without_space<device A> {
  using type = A;
};
template <class A>
struct without_space<constant A> {
  using type = A;
};
template <class A>
struct without_space<threadgroup A> {
  using type = A;
};
template <class A>
struct without_space<thread A> {
  using type = A;
};
template <class A>
struct without_space<__generic A> {
  using type = A;
};
#endif
template <class A>
using bare = typename without_space<metal::remove_cvref_t<A>>::type;

// Components of a vector or swizzle; 0 for a scalar
template <class A>
struct shape {
  static constexpr int width = 0;
  using element = A;
};
template <class T, int N>
struct shape<metal::vec<T, N>> {
  static constexpr int width = N;
  using element = T;
};
template <class T, int STORED, int... INDEX>
struct shape<metal::swizzle<T, STORED, INDEX...>> {
  static constexpr int width = sizeof...(INDEX);
  using element = T;
};
template <class A>
constexpr int width = shape<bare<A>>::width;
template <class A>
constexpr bool is_scalar = width<A> == 0;
template <class A>
constexpr bool is_vector = width<A> != 0;
template <class A>
using element = typename shape<bare<A>>::element;

// What an expression of type A is as a value: a scalar, or a vec
template <class A, int N>
struct value_type {
  using type = metal::vec<element<A>, N>;
};
template <class A>
struct value_type<A, 0> {
  using type = bare<A>;
};
template <class A>
using value = typename value_type<A, width<A>>::type;

// Whether two operands fit together, at least one of them a vector, and the vector that they give
template <class A, class B>
constexpr bool fit =
    (is_vector<A> || is_vector<B>) &&
    (is_scalar<A> || is_scalar<B> || (width<A> == width<B> && metal::is_same_v<element<A>, element<B>>));
template <class A, class B>
using joined = metal::conditional_t<is_vector<A>, value<A>, value<B>>;

}  // namespace metal_emulator

namespace metal {

template <class T, int STORED, int... INDEX>
struct swizzle {
  T data[STORED];
  using as_vec = vec<T, sizeof...(INDEX)>;

  METAL_FUNC as_vec get() const { return as_vec(data[INDEX]...); }
  METAL_FUNC operator as_vec() const { return get(); }
  METAL_FUNC T operator[](int i) const { return get()[i]; }
#if defined(METAL_EMULATOR_STRICT)
  METAL_FUNC as_vec get() const constant { return as_vec(data[INDEX]...); }
  METAL_FUNC operator as_vec() const constant { return get(); }
  METAL_FUNC T operator[](int i) const constant { return get()[i]; }
#endif
  METAL_FUNC swizzle& operator=(const as_vec& b) {
    int i = 0;
    ((data[INDEX] = b.data[i++]), ...);
    return *this;
  }
  METAL_FUNC swizzle& operator=(const swizzle& b) { return *this = b.get(); }
  METAL_FUNC swizzle& operator+=(const as_vec& b) { return *this = get() + b; }
  METAL_FUNC swizzle& operator-=(const as_vec& b) { return *this = get() - b; }
  METAL_FUNC swizzle& operator*=(const as_vec& b) { return *this = get() * b; }
  METAL_FUNC swizzle& operator/=(const as_vec& b) { return *this = get() / b; }
};

}  // namespace metal

namespace metal_emulator {

// Aligned like the vector that it belongs to: compilers load and store as many elements at once as alignment allows
template <class T, int N>
struct storage;

template <class T>
struct alignas(2 * sizeof(T)) storage<T, 2> {
  union {
    T data[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    METAL_EMULATOR_SWIZZLES_2(T)
  };
  METAL_FUNC constexpr storage() : data{} {}
  METAL_FUNC constexpr storage(const storage& o) : data{o.data[0], o.data[1]} {}
  METAL_FUNC storage& operator=(const storage& o) {
    data[0] = o.data[0];
    data[1] = o.data[1];
    return *this;
  }
};

template <class T>
struct alignas(4 * sizeof(T)) storage<T, 3> {
  union {
    T data[4];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    METAL_EMULATOR_SWIZZLES_3(T)
  };
  METAL_FUNC constexpr storage() : data{} {}
  METAL_FUNC constexpr storage(const storage& o) : data{o.data[0], o.data[1], o.data[2]} {}
  METAL_FUNC storage& operator=(const storage& o) {
    data[0] = o.data[0];
    data[1] = o.data[1];
    data[2] = o.data[2];
    return *this;
  }
};

template <class T>
struct alignas(4 * sizeof(T)) storage<T, 4> {
  union {
    T data[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    METAL_EMULATOR_SWIZZLES_4(T)
  };
  METAL_FUNC constexpr storage() : data{} {}
  METAL_FUNC constexpr storage(const storage& o) : data{o.data[0], o.data[1], o.data[2], o.data[3]} {}
  METAL_FUNC storage& operator=(const storage& o) {
    data[0] = o.data[0];
    data[1] = o.data[1];
    data[2] = o.data[2];
    data[3] = o.data[3];
    return *this;
  }
};

}  // namespace metal_emulator

namespace metal {

template <class T, int N>
struct vec : metal_emulator::storage<T, N> {
  using metal_emulator::storage<T, N>::data;

  METAL_FUNC constexpr vec() {}
  METAL_FUNC constexpr vec(const vec&) = default;
  METAL_FUNC vec& operator=(const vec&) = default;
#if defined(METAL_EMULATOR_STRICT)  // the generic address space of the front end leaves `constant` out
  METAL_FUNC vec(const constant vec& o) {
    for (int i = 0; i < N; i++) data[i] = o.data[i];
  }
  METAL_FUNC T operator[](int i) const constant { return data[i]; }
#endif

  // a scalar fills all components
  template <class S, class = enable_if_t<metal_emulator::is_scalar<S>&& __is_convertible(S, T) && !__is_class(S)>>
  METAL_FUNC constexpr vec(S s) {
    for (int i = 0; i < N; i++) data[i] = (T)s;
  }
  // another element type: only if written out
  template <class V, class = enable_if_t<metal_emulator::width<V> == N && !is_same_v<metal_emulator::element<V>, T>>,
            class = void>
  METAL_FUNC explicit vec(const V& other) {
    metal_emulator::value<V> v = other;
    for (int i = 0; i < N; i++) data[i] = (T)v.data[i];
  }
  // component lists: float4(v.xy, 1, 2)
  template <class A, class B, class... REST>
  METAL_FUNC constexpr vec(const A& a, const B& b, const REST&... rest) {
    int at = 0;
    append(at, a);
    append(at, b);
    (append(at, rest), ...);
  }

  METAL_FUNC constexpr T& operator[](int i) { return data[i]; }
  METAL_FUNC constexpr const T& operator[](int i) const { return data[i]; }

 private:
  template <class A>
  METAL_FUNC constexpr void append(int& at, const A& a) {
    if constexpr (metal_emulator::is_scalar<A>) {
      data[at++] = (T)a;
    } else {
      metal_emulator::value<A> v = a;
      for (int i = 0; i < metal_emulator::width<A>; i++) data[at++] = (T)v.data[i];
    }
  }
};

template <class T, int N>
struct packed_vec {
  T data[N];
  METAL_FUNC packed_vec() = default;
  METAL_FUNC packed_vec(const vec<T, N>& v) {
    for (int i = 0; i < N; i++) data[i] = v.data[i];
  }
#if defined(METAL_EMULATOR_STRICT)
  METAL_FUNC operator vec<T, N>() const constant {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v.data[i] = data[i];
    return v;
  }
  METAL_FUNC T operator[](int i) const constant { return data[i]; }
#endif
  METAL_FUNC operator vec<T, N>() const {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v.data[i] = data[i];
    return v;
  }
  METAL_FUNC T& operator[](int i) { return data[i]; }
  METAL_FUNC T operator[](int i) const { return data[i]; }
};

template <class T, int N>
struct array {
  T data[N];
  METAL_FUNC T& operator[](int i) { return data[i]; }
  METAL_FUNC const T& operator[](int i) const { return data[i]; }
};

}  // namespace metal

#define METAL_EMULATOR_VECTOR_NAMES(T)           \
  typedef metal::vec<T, 2> T##2;                 \
  typedef metal::vec<T, 3> T##3;                 \
  typedef metal::vec<T, 4> T##4;                 \
  typedef metal::packed_vec<T, 2> packed_##T##2; \
  typedef metal::packed_vec<T, 3> packed_##T##3; \
  typedef metal::packed_vec<T, 4> packed_##T##4;
METAL_EMULATOR_VECTOR_NAMES(float)
METAL_EMULATOR_VECTOR_NAMES(half)
METAL_EMULATOR_VECTOR_NAMES(bfloat)
METAL_EMULATOR_VECTOR_NAMES(int)
METAL_EMULATOR_VECTOR_NAMES(uint)
METAL_EMULATOR_VECTOR_NAMES(short)
METAL_EMULATOR_VECTOR_NAMES(ushort)
METAL_EMULATOR_VECTOR_NAMES(char)
METAL_EMULATOR_VECTOR_NAMES(uchar)
METAL_EMULATOR_VECTOR_NAMES(long)
METAL_EMULATOR_VECTOR_NAMES(ulong)
METAL_EMULATOR_VECTOR_NAMES(bool)
#undef METAL_EMULATOR_VECTOR_NAMES

template <class TO, class FROM>
METAL_FUNC TO as_type(const FROM& from) {
  static_assert(sizeof(TO) == sizeof(FROM), "as_type: the sizes differ");
  TO to;
  __builtin_memcpy(&to, &from, sizeof(TO));
  return to;
}
