// The three inner loops, over lanes (one vector element per row of the patch) and columns (rows of memory).
//
//   dots         S[i][lane]  = sum_d A[d][lane] * a[i][d]        A: the patch, transposed; a[i]: a column, in place
//   accumulate   O[lane][d] += sum_i P[i][lane] * b[i][d]         b[i]: likewise
//   transpose    [lane][d] <-> [d][lane], W x W at a time, in registers
//
//        dots: vectors of lanes                                   accumulate: vectors of channels
//        a[i][d]  one number     lane   0    1   ...  N-1          P[i][lane]  one number    d    0    1   ...  W-1
//           |                    A[d] [ q0   q1  ... q(N-1) ]         |                    b[i] [ b0   b1  ... b(W-1) ]
//           +-- times A[d] ----> S[i] [  .    .  ...   .    ]         +-- times b[i] -> O[lane] [  .    .  ...   .    ]
//
// A column is never rearranged. A multiply-accumulate takes its scalar operand straight from memory (AVX-512 broadcast,
// NEON by element), and these loops are bound by loads: g columns times V vectors of lanes cost g + V loads for
// g * V products, L lanes times K vectors of channels L + K. Groups are as large as the registers allow; a count is cut
// into groups of nearly equal size, since small ones stall on latency. While the products run, what is read after them
// is prefetched. A group of lanes skips the columns at either end of a block that none of its rows sees.
// Sources: FlashAttention (arXiv 2205.14135) for the blocks; the layout is that of outer-product matrix kernels.
#pragma once

#include "vector.h"

namespace natten {
namespace NATTEN_ISA {

// Numbers in a cache line
template <typename C>
constexpr int64_t kLine = 64 / sizeof(typename C::T);

// next, soon: rows that are read after these, one for each; they are prefetched
template <typename C, int A, int G>
NATTEN_INLINE void dot_group(const VectorOf<C>* lanes, const typename C::T* const* rows,
                             const typename C::T* const* next, const typename C::T* const* soon, int64_t width,
                             VectorOf<C>* out) {
  constexpr int V = C::V;
  VectorOf<C> sum[G][A];
  const typename C::T* row[G];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
    row[g] = rows[g];
#pragma GCC unroll 4
    for (int v = 0; v < A; ++v) sum[g][v] = VectorOf<C>{};
  }
  for (int64_t from = 0; from < width; from += kLine<C>) {
    const int64_t to = from + kLine<C> < width ? from + kLine<C> : width;
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      __builtin_prefetch(next[g] + from);
      __builtin_prefetch(soon[g] + from);
    }
    for (int64_t d = from; d < to; ++d) {
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int v = 0; v < A; ++v) sum[g][v] += lanes[d * V + v] * row[g][d];
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int v = 0; v < A; ++v) out[g * V + v] = sum[g][v];
  }
}

// L rows of sums, K vectors of each from channel `at` on; weights and before point to the first of these lanes. The
// columns' contributions are summed first and added to the sums at the end: short sums round less.
template <typename C, int K>
NATTEN_INLINE void sum_group(const typename C::T* weights, const typename C::T* const* rows, Range range, int64_t at,
                             typename C::T* sums, int64_t pitch, const typename C::T* before) {
  typedef typename C::T T;
  constexpr int L = kLaneGroup, W = C::W;
  VectorOf<C> sum[L][K];
#pragma GCC unroll 4
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) sum[l][k] = VectorOf<C>{};
  }
  for (int i = range.low; i < range.high; ++i) {
    const T *row = rows[i] + at, *weight = weights + i * C::N;
    VectorOf<C> channels[K];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) channels[k] = load(row + k * W);
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) sum[l][k] += channels[k] * weight[l];
    }
  }
#pragma GCC unroll 4
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      T* const to = sums + l * pitch + at + k * W;
      store<T>(to, before ? load(to) * before[l] + sum[l][k] : load(to) + sum[l][k]);
    }
  }
}

// Calls the group of the right size, G or less
template <typename C, int A, int G>
NATTEN_INLINE void any_dot_group(int size, const VectorOf<C>* lanes, const typename C::T* const* rows,
                                 const typename C::T* const* next, const typename C::T* const* soon, int64_t width,
                                 VectorOf<C>* out) {
  if (size == G) {
    dot_group<C, A, G>(lanes, rows, next, soon, width, out);
  } else if constexpr (G > 1) {
    any_dot_group<C, A, G - 1>(size, lanes, rows, next, soon, width, out);
  }
}

template <typename C, int K>
NATTEN_INLINE void any_sum_group(int size, const typename C::T* weights, const typename C::T* const* rows, Range range,
                                 int64_t at, typename C::T* sums, int64_t pitch, const typename C::T* before) {
  if (size == K) {
    sum_group<C, K>(weights, rows, range, at, sums, pitch, before);
  } else if constexpr (K > 1) {
    any_sum_group<C, K - 1>(size, weights, rows, range, at, sums, pitch, before);
  }
}

// As many columns at once as leave registers for the lanes and for one number, and an address per column
constexpr int keys_at_once(int vectors) { return smaller(12, (kRegisters - vectors - 1) / vectors); }
// As many vectors of channels at once as leave registers for themselves and for one number
constexpr int kChannelVectors = smaller(4, (kRegisters - 1) / (kLaneGroup + 1));

template <typename C, int A>
void dots_of(const VectorOf<C>* lanes, const typename C::T* const* rows, const typename C::T* const* soon, int count,
             int64_t width, VectorOf<C>* out) {
  constexpr int G = keys_at_once(A), V = C::V;
  int groups = (count + G - 1) / G;
  for (int at = 0; groups > 0; --groups) {
    const int size = (count - at + groups - 1) / groups;
    const int next = smaller(at + size, count - size);
    any_dot_group<C, A, G>(size, lanes, rows + at, rows + next, soon + at, width, out + at * V);
    at += size;
  }
}

// soon: rows that are read after these, one for each; these again if there are none
template <typename C, int A = C::V>
void dots(Vectors on, const VectorOf<C>* lanes, const typename C::T* const* rows, const typename C::T* const* soon,
          int count, int64_t width, VectorOf<C>* out) {
  if (on.count == A) {
    dots_of<C, A>(lanes + on.first, rows, soon, count, width, out + on.first);
  } else if constexpr (A > C::PANEL) {
    dots<C, A - C::PANEL>(on, lanes, rows, soon, count, width, out);
  }
}

// ranges: the columns that a group of lanes reads; before: what the lanes' sums are multiplied by first, or NULL
template <typename C>
void accumulate(Vectors on, const VectorOf<C>* weights, const typename C::T* const* rows, const Range* ranges,
                int64_t width, typename C::T* sums, const VectorOf<C>* before = nullptr) {
  typedef typename C::T T;
  constexpr int G = kChannelVectors, L = kLaneGroup, W = C::W;
  const int64_t vectors = (width + W - 1) / W, pitch = vectors * W;
  for (int lane = on.first * W; lane < on.end() * W; lane += L) {
    const Range range = ranges[lane / L];
    if (range.low >= range.high && !before) continue;
    const T* first = reinterpret_cast<const T*>(weights) + lane;
    const T* factors = before ? reinterpret_cast<const T*>(before) + lane : nullptr;
    int64_t groups = (vectors + G - 1) / G;
    for (int64_t at = 0; groups > 0; --groups) {
      const int size = int((vectors - at + groups - 1) / groups);
      any_sum_group<C, G>(size, first, rows, range, at * W, sums + lane * pitch, pitch, factors);
      at += size;
    }
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
