// Whether matrix units multiply as mpp.h takes it: both products, on small whole numbers, which come out exactly.
//
//   rows, columns [16][D]       whole numbers from -3 to 3; one simdgroup, one threadgroup
//   found [2][S | O | largest | sums | 2]   of columns in device memory, and of the same in threadgroup memory:
//     S [16][16] = rows . columns;  O [16][D] = S . columns, added twice;  the largest of each row of S, and its sum;
//     how many elements of S and of O all lanes together hold
//
// All elements are there once if they are as many as there should be, and each place holds the right number; what was
// in memory before could be just that, so places are cleared first. D must be so small that the elements of S need ten
// bits: what a unit cuts off is then zero.
#pragma once

namespace na {

template <typename O>
METAL_FUNC void write_elements(device float* to, thread O& o, int width) {
  NA_UNROLL for (ushort i = 0; i < o.get_capacity(); ++i) {
    const Place at = place_of(o, i);
    if (o.is_valid_element(i) && at.row < kSide && at.column < width) to[at.row * width + at.column] = o[i];
  }
}

template <typename C, typename View>
METAL_FUNC void check_products(device float* found, Near<typename C::T> rows, View columns,
                               const thread WideMemory<C>& memory, int lane) {
  typedef typename C::T T;
  typedef Across<T, View, C::DA> Products;
  typedef Along<T, View, C::DA> Sums;
  device float* along = found + kSide * kSide;
  device float* of_rows = along + kSide * C::DA;
  auto s = Products::products();
  auto value = Products::row_values();
  auto o = Sums::sums();
  if (s.get_capacity() > kMostSlots) return;  // no such layout is known; what is not written shows
  const uint elements = elements_of(s);
  RowSlots slots;
  slots.find(s, value);
  fill(o, 0.0f);
  Products::multiply(s, rows, columns);
  write_elements(found, s, kSide);
  largest_of_rows(s, value);
  const float largest = value_of_row(memory.line, s, value, slots, elements, lane % kSide);
  sums_of_rows(s, value);
  const float sum = value_of_row(memory.line, s, value, slots, elements, lane % kSide);
  if (lane < kSide) {
    of_rows[lane] = largest;
    of_rows[kSide + lane] = sum;
  }
  Sums::multiply(o, s, columns, memory.weights);
  Sums::multiply(o, s, columns, memory.weights);
  write_elements(along, o, C::DA);
  const float held = simd_sum(float(popcount(elements)));
  const float held_along = simd_sum(float(popcount(elements_of(o))));
  if (lane == 0) {
    of_rows[2 * kSide] = held;
    of_rows[2 * kSide + 1] = held_along;
  }
}

template <typename C>
METAL_FUNC void na_mpp_check(const device typename C::T* rows, const device typename C::T* columns,
                             const thread Params& prm, device float* found, threadgroup uint4* shared, uint3 tgid,
                             uint sg, uint lane) {
  constexpr int FOUND = kSide * kSide + kSide * C::DA + 2 * kSide + 2;
  WideMemory<C> memory;
  memory.find(shared, sg, false);
  for (int i = int(lane); i < kSide * C::DA; i += 32) {
    memory.rows_a[i] = rows[i];
    memory.columns[i] = columns[i];
  }
  for (int i = int(lane); i < 2 * FOUND; i += 32) found[i] = MAXFLOAT;
  simdgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  const Near<typename C::T> own = near_view(memory.rows_a, C::DA, C::DA);
  check_products<C>(found, own, far_view(columns, C::DA, C::DA), memory, int(lane));
  check_products<C>(found + FOUND, own, near_view(memory.columns, C::DA, C::DA), memory, int(lane));
}

}  // namespace na
