// 8x8 matrix multiply-accumulate of one simdgroup: the only file that touches simdgroup_matrix.
//
// Each lane holds two values of an 8x8 fragment. With quad = lane / 4:
//   row = (quad & 4) + (lane / 2) % 4        col = (quad & 2) * 2 + (lane % 2) * 2
//   the lane holds M[row][col] and M[row][col + 1]           (the same for A, B and C)
//
//   row 0:  lanes 0 0 1 1 | 8 8 9 9     a row lies in lanes that differ in bit 0 and bit 3,
//   row 1:  lanes 2 2 3 3 | ...         so a row reduction is: own pair, xor 1, xor 8
//
// Fragments stay Pair<T> in registers and become matrices only around the instruction. The mapping is not in
// Apple's specification; MLX's steel kernels and metal-flash-attention rely on the same one.
#pragma once

#define NA_UNROLL _Pragma("clang loop unroll(full)")

namespace na {

template <typename T>
using Pair = vec<T, 2>;

METAL_FUNC int fragment_row(uint lane) { return int(((lane >> 2) & 4) + ((lane >> 1) & 3)); }
METAL_FUNC int fragment_col(uint lane) { return int(((lane >> 2) & 2) * 2 + (lane & 1) * 2); }

// c += a * b, accumulated in float whatever the types of the sides. A: the type of the row side, float for gradients of
// logits, which may exceed the range of half; b keeps its type
template <typename T, typename A = T>
METAL_FUNC void mma(thread Pair<float>& c, Pair<A> a, Pair<T> b) {
  simdgroup_matrix<A, 8, 8> ma;
  simdgroup_matrix<T, 8, 8> mb;
  simdgroup_matrix<float, 8, 8> mc;
  ma.thread_elements()[0] = a[0];
  ma.thread_elements()[1] = a[1];
  mb.thread_elements()[0] = b[0];
  mb.thread_elements()[1] = b[1];
  mc.thread_elements()[0] = c[0];
  mc.thread_elements()[1] = c[1];
  simdgroup_multiply_accumulate(mc, ma, mb, mc);
  c[0] = mc.thread_elements()[0];
  c[1] = mc.thread_elements()[1];
}

METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}

METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}

}  // namespace na
