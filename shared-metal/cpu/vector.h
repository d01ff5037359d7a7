// The vector type of the instruction set that this file is compiled for, and its exponential.
//
// kernels.cpp and every header that it includes are compiled once per instruction set, each time in a namespace of its
// own (NATTEN_ISA). An inline function that two such builds had in common could be taken from the wrong one by the
// linker, so these files include C headers only and put whatever they define into that namespace.
//
//   Lane<T>::Vector   W numbers of type T       Lane<T>::Mask   W integers of the same size, 0 or -1
//
// Only the vector extensions that GCC and clang share are used; a vector wider than the registers is slow, so W is
// chosen by the target.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef NATTEN_ISA
#error "define NATTEN_ISA, the namespace of this build"
#endif

#if defined(__AVX512F__)
#define NATTEN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define NATTEN_VECTOR_BYTES 32
#else
#define NATTEN_VECTOR_BYTES 16
#endif

#define NATTEN_INLINE inline __attribute__((always_inline))

namespace natten {
namespace NATTEN_ISA {

template <typename T>
struct Lane;

template <>
struct Lane<float> {
  typedef float Vector __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef int32_t Integer;
  static constexpr int W = NATTEN_VECTOR_BYTES / 4;
  static constexpr float kLowest = -3.402823466e38f;
};

template <>
struct Lane<double> {
  typedef double Vector __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(NATTEN_VECTOR_BYTES)));
  typedef int64_t Integer;
  static constexpr int W = NATTEN_VECTOR_BYTES / 8;
  static constexpr double kLowest = -1.7976931348623157e308;
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// A patch: V vectors of lanes in panels of PANEL vectors
template <typename Number, int PANEL_VECTORS, int PANELS_>
struct PatchOf {
  typedef Number T;
  static constexpr int PANELS = PANELS_, V = PANEL_VECTORS * PANELS, W = Lane<T>::W, N = V * W;
  static constexpr int PANEL = PANEL_VECTORS, PANEL_LANES = PANEL * W;
};

// Some vectors of a patch: `count` from `first` on
struct Vectors {
  int first, count;
  int end() const { return first + count; }
};

// Lanes whose sums are held in registers at a time
constexpr int kLaneGroup = 4;

// Columns low .. high - 1 of a block
struct Range {
  int low, high;
};

template <typename T>
using Vector = typename Lane<T>::Vector;
template <typename T>
using Mask = typename Lane<T>::Mask;
template <typename C>
using VectorOf = Vector<typename C::T>;

// A narrow patch is one panel of at least 8 lanes where the registers allow it. A wide one is several such panels side
// by side; a dot product uses each number of the columns that they share once for each of them. kernels.cpp chooses.
constexpr int kWidePanels = NATTEN_VECTOR_BYTES == 64 ? 4 : (kRegisters == 32 || NATTEN_VECTOR_BYTES == 32 ? 2 : 1);
template <typename T>
using Narrow = PatchOf<T, NATTEN_VECTOR_BYTES == 16 || (NATTEN_VECTOR_BYTES == 32 && sizeof(T) == 8) ? 2 : 1, 1>;
template <typename T>
using Wide = PatchOf<T, Narrow<T>::PANEL, kWidePanels>;

template <typename T>
NATTEN_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
NATTEN_INLINE void store(T* to, Vector<T> v) {
  memcpy(to, &v, sizeof(v));
}

template <typename T>
NATTEN_INLINE Vector<T> splat(T x) {
  return Vector<T>{} + x;
}

// The lanes whose bit is set
template <typename T>
NATTEN_INLINE Mask<T> lanes_of(uint32_t bits) {
  typedef typename Lane<T>::Integer Integer;
  Mask<T> bit;
  for (int l = 0; l < Lane<T>::W; ++l) bit[l] = Integer(1) << l;
  return (bit & Integer(bits)) != 0;
}

template <typename V>
NATTEN_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}

// 1 / x, and 0 for 0: the factor that normalises a sum, which may be empty
template <typename V>
NATTEN_INLINE V reciprocal(V x) {
  return x == 0 ? V{} : 1 / x;
}

// What is subtracted from the logits of a row before exp(): its lse; +inf where that is -inf, which makes all weights 0
template <typename V>
NATTEN_INLINE V shift_of(V lse) {
  return lse == V{} - __builtin_inff() ? V{} + __builtin_inff() : lse;
}

// exp(x) for x <= 0 to about one unit in the last place; 0 below the smallest normal number, NaN for NaN and +inf.
// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by a polynomial (the minimax one of Cephes for float, Taylor's for
// double). Adding and taking away `round` makes n an integer and leaves it in the low bits.
NATTEN_INLINE Vector<float> exponential(Vector<float> x) {
  const float round = 12582912.0f;  // 1.5 * 2^23
  const Vector<float> shifted = x * 1.44269504088896341f + round;
  const Vector<float> n = shifted - round;
  Vector<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Lane<float>::Bits bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (127u << 23);
  Vector<float> power;
  memcpy(&power, &bits, sizeof(power));
  return x < -87.33f ? Vector<float>{} : p * power;
}

NATTEN_INLINE Vector<double> exponential(Vector<double> x) {
  const double round = 6755399441055744.0;  // 1.5 * 2^52
  const Vector<double> shifted = x * 1.4426950408889634 + round;
  const Vector<double> n = shifted - round;
  Vector<double> r = x - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  Vector<double> p = splat<double>(1.0 / 6227020800.0);
  const double inverse_factorial[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                      1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                      1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0};
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) p = p * r + inverse_factorial[i];
  p = p * r + 1.0;
  Lane<double>::Bits bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 52) + (uint64_t(1023) << 52);
  Vector<double> power;
  memcpy(&power, &bits, sizeof(power));
  return x < -708.39 ? Vector<double>{} : p * power;
}

NATTEN_INLINE float logarithm(float x) { return __builtin_logf(x); }
NATTEN_INLINE double logarithm(double x) { return __builtin_log(x); }

}  // namespace NATTEN_ISA
}  // namespace natten
