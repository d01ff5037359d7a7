// The three inner loops, over lanes (one vector element per row of the patch) and columns (rows of memory).
//
//   dots         S[i][lane]  = sum_d A[d][lane] * a[i][d]        A: the patch, transposed; a[i]: a column, in place
//   accumulate   O[d][lane] += sum_i P[i][lane] * b[i][d]
//   transpose    [lane][d] <-> [d][lane], W x W at a time, in registers
//
//        a[i][d]  one number for all lanes          lane   0    1    2   ...  N-1
//           |                                       A[d] [ q0   q1   q2  ...  q(N-1) ]
//           +---- times every lane of A[d] -------> S[i] [  .    .    .  ...   .     ]
//
// A column is read once for N rows and never rearranged. A multiply-accumulate takes its number straight from memory
// (AVX-512 broadcast, NEON by element), so a group of g columns costs g + V loads for g * V products: groups are as
// large as the registers allow, and a count is cut into groups of nearly equal size, since small ones wait for results.
// Sources: FlashAttention (arXiv 2205.14135) for the blocks; the layout is that of outer-product matrix kernels.
#pragma once

#include "vector.h"

namespace natten {
namespace NATTEN_ISA {

template <typename C, int G>
NATTEN_INLINE void dot_group(const VectorOf<C>* lanes, const typename C::T* const* rows, int64_t width, VectorOf<C>* out) {
  constexpr int V = C::V;
  VectorOf<C> sum[G][V];
  const typename C::T* row[G];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
    row[g] = rows[g];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[g][v] = VectorOf<C>{};
  }
  for (int64_t d = 0; d < width; ++d) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[g][v] += lanes[d * V + v] * row[g][d];
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) out[g * V + v] = sum[g][v];
  }
}

template <typename C, int G>
NATTEN_INLINE void sum_group(const VectorOf<C>* weights, const typename C::T* const* rows, int count, int64_t at, VectorOf<C>* sums,
                             bool fresh) {
  constexpr int V = C::V;
  VectorOf<C> sum[G][V];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[g][v] = fresh ? VectorOf<C>{} : sums[(at + g) * V + v];
  }
  for (int i = 0; i < count; ++i) {
    const typename C::T* row = rows[i] + at;
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[g][v] += weights[i * V + v] * row[g];
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[(at + g) * V + v] = sum[g][v];
  }
}

// Calls the group of the right size, G or less
template <typename C, int G>
NATTEN_INLINE void any_dot_group(int size, const VectorOf<C>* lanes, const typename C::T* const* rows, int64_t width,
                                 VectorOf<C>* out) {
  if (size == G) {
    dot_group<C, G>(lanes, rows, width, out);
  } else if constexpr (G > 1) {
    any_dot_group<C, G - 1>(size, lanes, rows, width, out);
  }
}

template <typename C, int G>
NATTEN_INLINE void any_sum_group(int size, const VectorOf<C>* weights, const typename C::T* const* rows, int count, int64_t at,
                                 VectorOf<C>* sums, bool fresh) {
  if (size == G) {
    sum_group<C, G>(weights, rows, count, at, sums, fresh);
  } else if constexpr (G > 1) {
    any_sum_group<C, G - 1>(size, weights, rows, count, at, sums, fresh);
  }
}

template <typename C>
void dots(const VectorOf<C>* lanes, const typename C::T* const* rows, int count, int64_t width, VectorOf<C>* out) {
  constexpr int G = C::KEYS, V = C::V;
  int groups = (count + G - 1) / G;
  for (int at = 0; groups > 0; --groups) {
    const int size = (count - at + groups - 1) / groups;
    any_dot_group<C, G>(size, lanes, rows + at, width, out + at * V);
    at += size;
  }
}

// fresh: sums hold nothing yet
template <typename C>
void accumulate(const VectorOf<C>* weights, const typename C::T* const* rows, int count, int64_t width, VectorOf<C>* sums, bool fresh) {
  constexpr int G = C::CHANNELS;
  int64_t groups = (width + G - 1) / G;
  for (int64_t at = 0; groups > 0; --groups) {
    const int size = int((width - at + groups - 1) / groups);
    any_sum_group<C, G>(size, weights, rows, count, at, sums, fresh);
    at += size;
  }
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  typedef Indices<I...> Type;
};

// Exchanges the S elements of a that belong to b with those of b that belong to a
template <int S, typename V, int... I>
NATTEN_INLINE void exchange(V& a, V& b, Indices<I...>) {
  constexpr int W = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...);
  b = __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...);
  a = low;
}

template <typename T, int S>
NATTEN_INLINE void transpose_steps(Vector<T>* rows) {
  constexpr int W = Lane<T>::W;
  typedef typename CountTo<W>::Type All;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], All());
  }
  if constexpr (S > 1) transpose_steps<T, S / 2>(rows);
}

// W vectors of W elements
template <typename T>
NATTEN_INLINE void transpose(Vector<T>* rows) {
  transpose_steps<T, Lane<T>::W / 2>(rows);
}

}  // namespace NATTEN_ISA
}  // namespace natten
