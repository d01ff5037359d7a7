// Tensors for the tests: any dtype, any strides, with gaps around and between their elements that nothing may write to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "natten_cpu.h"

typedef std::mt19937_64 Random;

inline int pick(Random& random, int low, int high) { return low + int(random() % uint64_t(high - low + 1)); }

// --- dtypes, one element at a time -------------------------------------------------------------------------

inline size_t bytes_of(int dtype) { return dtype == NATTEN_FLOAT64 ? 8 : (dtype == NATTEN_FLOAT32 ? 4 : 2); }

// Unit in the last place of 1, halved: the largest relative error of one rounding
inline double rounding_of(int dtype) {
  const double bits[] = {0x1p-11, 0x1p-8, 0x1p-24, 0x1p-53};
  return bits[dtype];
}

inline double read_element(int dtype, const void* at) {
  if (dtype == NATTEN_FLOAT64) {
    double x;
    memcpy(&x, at, 8);
    return x;
  }
  uint32_t bits = 0;
  memcpy(&bits, at, bytes_of(dtype));
  if (dtype == NATTEN_FLOAT16) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
  }
  if (dtype == NATTEN_BFLOAT16) bits <<= 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// x must be representable
inline void write_element(int dtype, void* at, double x) {
  if (dtype == NATTEN_FLOAT64) {
    memcpy(at, &x, 8);
    return;
  }
  const float single = float(x);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  if (dtype == NATTEN_BFLOAT16) bits >>= 16;
  if (dtype == NATTEN_FLOAT16) {
    const uint32_t sign = bits >> 16 & 0x8000;
    const int exponent = int(bits >> 23 & 255) - 112;
    const uint32_t mantissa = bits >> 13 & 1023;
    if (std::isnan(x)) bits = 0x7e00;
    else if (std::isinf(x)) bits = sign | 0x7c00;
    else if (exponent > 0) bits = sign | uint32_t(exponent) << 10 | mantissa;
    else bits = sign | (exponent < -10 ? 0 : (1024 | mantissa) >> (1 - exponent));
  }
  memcpy(at, &bits, bytes_of(dtype));
}

// --- tensors -----------------------------------------------------------------------------------------------

constexpr unsigned char kUntouched = 0xa5;

// A tensor of up to 6 dimensions; `dims` in the order of the C interface: batch, axes, head, channel
struct Array {
  int dtype = NATTEN_FLOAT32;
  std::vector<int64_t> dims, strides;
  std::vector<unsigned char> bytes;

  int64_t count() const {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    return n;
  }

  int64_t offset(int64_t index) const {
    int64_t at = 0;
    for (size_t d = dims.size(); d-- > 0;) {
      at += index % dims[d] * strides[d];
      index /= dims[d];
    }
    return at;
  }

  size_t byte(int64_t index) const { return size_t(offset(index)) * bytes_of(dtype); }
  double get(int64_t index) const { return read_element(dtype, bytes.data() + byte(index)); }
  void set(int64_t index, double x) { write_element(dtype, bytes.data() + byte(index), x); }

  // Row-major index of the row (batch, token, head) of a tensor whose axes hold `tokens` tokens
  int64_t row(int64_t batch, int64_t token, int64_t head, int64_t tokens, int64_t heads) const {
    return (batch * tokens + token) * heads + head;
  }
};

// kind 0: contiguous; 1: dimensions in a random order, gaps between them; 2: as 1, one dimension broadcast
inline Array make_array(Random& random, int dtype, const std::vector<int64_t>& dims, int kind) {
  Array a;
  a.dtype = dtype, a.dims = dims, a.strides.assign(dims.size(), 1);
  std::vector<size_t> order(dims.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = dims.size() - 1 - i;
  if (kind) std::shuffle(order.begin(), order.end(), random);
  const size_t repeated = kind == 2 ? size_t(pick(random, 0, int(dims.size()) - 1)) : dims.size();
  int64_t stride = kind ? pick(random, 1, 2) : 1;
  for (size_t d : order) {
    a.strides[d] = d == repeated ? 0 : stride;
    if (d != repeated) stride = stride * std::max<int64_t>(dims[d], 1) + (kind ? pick(random, 0, 3) : 0);
  }
  a.bytes.assign(size_t(stride) * bytes_of(dtype), kUntouched);
  return a;
}

// Multiples of 1/4 in [-2, 2], which every dtype represents exactly
inline void fill(Random& random, Array& a) {
  for (int64_t i = 0; i < a.count(); ++i) a.set(i, pick(random, -8, 8) / 4.0);
}

// natten_tensor of an array with (channels) or without a channel dimension
inline natten_tensor tensor_of(Array& a, bool channels = true) {
  natten_tensor t = {a.bytes.data(), {0, 0, 0, 0, 0, 0}};
  const size_t axes = a.dims.size() - (channels ? 3 : 2);
  t.stride[0] = a.strides[0];
  for (size_t i = 0; i < axes; ++i) t.stride[1 + i] = a.strides[1 + i];
  t.stride[4] = a.strides[1 + axes];
  if (channels) t.stride[5] = a.strides[2 + axes];
  return t;
}

// Whether every byte that belongs to no element is unchanged
inline bool untouched_between(const Array& a) {
  std::vector<bool> owned(a.bytes.size(), false);
  const size_t size = bytes_of(a.dtype);
  for (int64_t i = 0; i < a.count(); ++i) {
    for (size_t b = 0; b < size; ++b) owned[size_t(a.offset(i)) * size + b] = true;
  }
  for (size_t b = 0; b < a.bytes.size(); ++b) {
    if (!owned[b] && a.bytes[b] != kUntouched) return false;
  }
  return true;
}
