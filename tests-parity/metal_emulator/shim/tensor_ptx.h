// Tensor operations on an NVIDIA GPU's matrix units: mma.sync of one warp.
//
// A destination is made of tiles of 16x8. With quad = lane / 4 and t = lane % 4, a lane holds in slots 4j .. 4j + 3 of
// tile j the rows quad, quad, quad + 8, quad + 8 and the columns 8j + 2t, 8j + 2t + 1, twice. A left side of floats has
// the same layout, so conversions are free: in a product over 8 of its columns, the unit's columns t and t + 4 are the
// lane's own 2t and 2t + 1, and the right side's rows are taken in the same order. Floats are cut to ten bits of
// mantissa (tf32), as Metal's are. Dimensions are multiples of 16, and a tensor of static depth is aligned to 4 bytes.
#pragma once

namespace metal {
template <class T, class E, class TAG>
struct tensor;
template <class T, class L>
struct cooperative_tensor;
}  // namespace metal

namespace metal_emulator {

METAL_FUNC int tensor_element(int, int, int columns, int, int slot) {
  return (int(lane() >> 2) + slot % 4 / 2 * 8) * columns + slot / 4 * 8 + int(lane() & 3) * 2 + slot % 2;
}
METAL_FUNC int tensor_row(int, int, int, int slot) { return slot < 2 ? int(lane() >> 2) + slot * 8 : -1; }
METAL_FUNC int tensor_row_slot(int, int, int, int row) { return row >= 8 ? 1 : 0; }
METAL_FUNC constexpr bool tensor_converts(int, int) { return true; }
METAL_FUNC void tensor_misuse(const char*) {}

// d += a * b over 16 of half or bfloat
METAL_FUNC void mma_16(float* d, const uint* a, const uint* b, half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
METAL_FUNC void mma_16(float* d, const uint* a, const uint* b, bfloat) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Over 8 of float
METAL_FUNC void mma_8(float* d, const uint* a, const uint* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Element (row, column) of a tensor, 0 outside its extents
template <class T, class M>
METAL_FUNC T tensor_value(const M& m, int row, int column) {
  if (row >= m.size[1] || column >= m.size[0]) return T(0);
  return m.data[row * m.stride[1] + column];
}

// Two neighbours of a row. STATIC: both exist
template <class T, bool STATIC, class M>
METAL_FUNC uint tensor_pair(const M& m, int row, int column) {
  uint word;
  if (STATIC) {
    if (row >= m.size[1]) return 0u;
    __builtin_memcpy(&word, __builtin_assume_aligned(m.data + (row * m.stride[1] + column), 4), 4);
  } else {
    const T pair[2] = {tensor_value<T>(m, row, column), tensor_value<T>(m, row, column + 1)};
    __builtin_memcpy(&word, pair, 4);
  }
  return word;
}

// Both sides in memory, the right one transposed
template <class OP, class A, class B, class C>
METAL_FUNC void multiply_from_memory(const A& left, const B& right, C& destination) {
  using T = bare<typename A::element_type>;
  static_assert(!OP::TRANSPOSE_LEFT && OP::TRANSPOSE_RIGHT && !OP::ACCUMULATE, "the one product of tensors in memory");
  const int quad = int(lane() >> 2);
  const int t = int(lane() & 3);
  const int depth = OP::DYNAMIC ? int(left.size[0]) : OP::K;
#pragma clang loop unroll(full)
  for (int i = 0; i < C::layout::capacity; i++) destination.elements[i] = 0;
#pragma clang loop unroll_count(8)
  for (int k = 0; k < depth; k += 16) {
    uint a[4];
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; i++) a[i] = tensor_pair<T, !OP::DYNAMIC>(left, quad + i % 2 * 8, k + t * 2 + i / 2 * 8);
#pragma clang loop unroll(full)
    for (int n = 0; n < OP::N; n += 8) {
      uint b[2];
#pragma clang loop unroll(full)
      for (int i = 0; i < 2; i++) b[i] = tensor_pair<T, !OP::DYNAMIC>(right, n + quad, k + t * 2 + i * 8);
      mma_16(destination.elements + n / 2, a, b, T(0));
    }
  }
}

// A left side of floats in registers, the right side in memory
template <class OP, class A, class B, class C>
METAL_FUNC void multiply_from_registers(const A& left, const B& right, C& destination) {
  using T = bare<typename B::element_type>;
  static_assert(!OP::TRANSPOSE_RIGHT && OP::ACCUMULATE && OP::K == 16, "the one product with a left side in registers");
  const int quad = int(lane() >> 2);
  const int t = int(lane() & 3);
#pragma clang loop unroll(full)
  for (int k = 0; k < 2; k++) {
    const float* own = left.elements + 4 * k;
    const uint a[4] = {as_type<uint>(own[0]), as_type<uint>(own[2]), as_type<uint>(own[1]), as_type<uint>(own[3])};
#pragma clang loop unroll(full)
    for (int n = 0; n < OP::N; n += 8) {
      uint b[2];
#pragma clang loop unroll(full)
      for (int i = 0; i < 2; i++) b[i] = as_type<uint>(float(tensor_value<T>(right, k * 8 + t * 2 + i, n + quad)));
      mma_8(destination.elements + n / 2, a, b);
    }
  }
}

template <class OP, class T, class L, class B, class C>
METAL_FUNC void tensor_multiply(const metal::cooperative_tensor<T, L>& left, const B& right, C& destination,
                                metal_emulator_site) {
  static_assert(metal::is_same_v<T, float>, "a left side in registers is float");
  multiply_from_registers<OP>(left, right, destination);
}
template <class OP, class T, class E, class TAG, class B, class C>
METAL_FUNC void tensor_multiply(const metal::tensor<T, E, TAG>& left, const B& right, C& destination,
                                metal_emulator_site) {
  multiply_from_memory<OP>(left, right, destination);
}

template <class S, class C>
METAL_FUNC void tensor_convert(const S& from, C& to, metal_emulator_site) {
#pragma clang loop unroll(full)
  for (int i = 0; i < C::layout::capacity; i++) to.elements[i] = from.elements[i];
}

template <class S, class R>
METAL_FUNC void tensor_reduce_rows(const S& from, R& to, int operation, float identity, metal_emulator_site site) {
#pragma clang loop unroll(full)
  for (int row = 0; row < 2; row++) {
    float value = identity;
#pragma clang loop unroll(full)
    for (int i = 0; i < S::layout::capacity; i++) {
      if (i % 4 / 2 != row) continue;
      value = operation == 0 ? value + from.elements[i] : metal::max(value, from.elements[i]);
    }
    for (unsigned distance = 1; distance < 4; distance *= 2) {
      const float other = shuffle(value, lane() ^ distance, site);
      value = operation == 0 ? value + other : metal::max(value, other);
    }
    to.elements[row] = value;
  }
}

}  // namespace metal_emulator
