// Rows of any dtype and channel stride: read as float (double for double), written with one rounding.
//
// float16 and bfloat16 widen exactly; narrowing rounds to nearest, ties to even, and keeps infinities and NaN.
#pragma once

#include "natten_cpu.h"
#include "vector.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace natten {
namespace NATTEN_ISA {

NATTEN_INLINE float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

NATTEN_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Element types: what lies in memory, and its two conversions
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

NATTEN_INLINE float widen(Half h) {
  const uint32_t exponent_and_mantissa = uint32_t(h.bits & 0x7fff) << 13;
  const uint32_t magnitude = exponent_and_mantissa >= 0x0f800000 ? exponent_and_mantissa | 0x7f800000
                                                                 : as_bits(as_float(exponent_and_mantissa) * 0x1p112f);
  return as_float(magnitude | uint32_t(h.bits & 0x8000) << 16);
}
NATTEN_INLINE float widen(Bfloat b) { return as_float(uint32_t(b.bits) << 16); }
NATTEN_INLINE float widen(float x) { return x; }
NATTEN_INLINE double widen(double x) { return x; }

NATTEN_INLINE void narrow(float x, Half* to) {
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t half;
  if (size >= 0x47800000) {  // 65536 and more
    half = size > 0x7f800000 ? 0x7e00 : 0x7c00;
  } else if (size < 0x38800000) {  // subnormal: one unit in the last place of 0.5f is that of a subnormal half
    half = as_bits(as_float(size) + 0.5f) - as_bits(0.5f);
  } else {
    half = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
  }
  to->bits = uint16_t(half | sign);
}
NATTEN_INLINE void narrow(float x, Bfloat* to) {
  const uint32_t bits = as_bits(x);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  to->bits = uint16_t((nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
NATTEN_INLINE void narrow(float x, float* to) { *to = x; }
NATTEN_INLINE void narrow(double x, double* to) { *to = x; }

inline int element_size(int dtype) { return dtype == NATTEN_FLOAT64 ? 8 : (dtype == NATTEN_FLOAT32 ? 4 : 2); }

// Calls body.run<E>() with the element type E of a dtype that T accumulates
template <typename T, typename Body>
NATTEN_INLINE void with_element(int dtype, const Body& body) {
  if constexpr (sizeof(T) == 8) {
    body.template run<double>();
  } else {
    if (dtype == NATTEN_FLOAT16) return body.template run<Half>();
    if (dtype == NATTEN_BFLOAT16) return body.template run<Bfloat>();
    body.template run<float>();
  }
}

NATTEN_INLINE void prefetch_row(const char* row, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

template <typename T>
struct ReadRow {
  const char* from;
  int64_t channel;
  int64_t count;
  T* to;

  template <typename E>
  NATTEN_INLINE void run() const {
    const E* row = reinterpret_cast<const E*>(from);
    if (channel != 1) {
      for (int64_t d = 0; d < count; ++d) to[d] = widen(row[d * channel]);
    } else {
      contiguous(row);
    }
  }

  template <typename E>
  NATTEN_INLINE void contiguous(const E* row) const {
    for (int64_t d = 0; d < count; ++d) to[d] = widen(row[d]);
  }

#if defined(__F16C__)
  NATTEN_INLINE void contiguous(const Half* row) const {
    int64_t d = 0;
    for (; d + 8 <= count; d += 8) {
      _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d))));
    }
    for (; d < count; ++d) to[d] = widen(row[d]);
  }
#else
  // A vector at a time: compilers do not vectorize this by themselves
  NATTEN_INLINE void contiguous(const Half* row) const {
    constexpr int W = Lane<float>::W;
    typedef typename Lane<float>::Bits Bits;
    typedef uint16_t Halves __attribute__((vector_size(NATTEN_VECTOR_BYTES / 2)));
    int64_t d = 0;
    for (; d + W <= count; d += W) {
      Halves halves;
      memcpy(&halves, row + d, sizeof(halves));
      const Bits half = __builtin_convertvector(halves, Bits), size = (half & 0x7fff) << 13;
      const Bits scaled = Bits(Vector<float>(size) * 0x1p112f);
      store(to + d, Vector<float>((size >= 0x0f800000 ? size | 0x7f800000 : scaled) | (half & 0x8000) << 16));
    }
    for (; d < count; ++d) to[d] = widen(row[d]);
  }
#endif
};

// to[0 .. count) = the row at `from`, whose channels lie `channel` elements apart
template <typename T>
inline void read_row(int dtype, const char* from, int64_t channel, int64_t count, T* to) {
  with_element<T>(dtype, ReadRow<T>{from, channel, count, to});
}

template <typename T>
struct WriteRow {
  char* to;
  int64_t channel;
  int64_t count;
  T factor;
  const T* from;

  template <typename E>
  NATTEN_INLINE void run() const {
    E* row = reinterpret_cast<E*>(to);
    if (channel != 1) {
      for (int64_t d = 0; d < count; ++d) narrow(factor * from[d], row + d * channel);
    } else {
      for (int64_t d = 0; d < count; ++d) narrow(factor * from[d], row + d);
    }
  }
};

template <typename T>
NATTEN_INLINE void write_row(int dtype, char* to, int64_t channel, int64_t count, T factor, const T* from) {
  with_element<T>(dtype, WriteRow<T>{to, channel, count, factor, from});
}

}  // namespace NATTEN_ISA
}  // namespace natten
