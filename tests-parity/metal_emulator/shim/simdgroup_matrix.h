// <metal_simdgroup_matrix>: simdgroup_matrix<T, 8, 8> for half, bfloat and float.
//
// A lane holds two neighbours of one row, M[row][col] and M[row][col + 1], in the layout that Apple GPUs use:
//
//   quad = lane / 4;   row = (quad & 4) + (lane / 2) % 4;   col = (quad & 2) * 2 + (lane % 2) * 2
//
//   row 0: lanes  0  1 |  8  9      row 4: lanes 16 17 | 24 25
//   row 1: lanes  2  3 | 10 11      row 5: lanes 18 19 | 26 27
//   row 2: lanes  4  5 | 12 13      row 6: lanes 20 21 | 28 29
//   row 3: lanes  6  7 | 14 15      row 7: lanes 22 23 | 30 31
//
// Products accumulate in float for every element type. An unset matrix holds NaN.
#pragma once

namespace metal {

template <class T, int ROWS, int COLS>
struct simdgroup_matrix {
  static_assert(ROWS == 8 && COLS == 8, "simdgroup_matrix is 8x8");
  static_assert(is_same_v<T, half> || is_same_v<T, bfloat> || is_same_v<T, float>,
                "simdgroup_matrix of half, bfloat or float");
  using elements = vec<T, 2>;
  elements held;

  METAL_FUNC static unsigned row() { return ((metal_emulator::lane() / 4) & 4) + (metal_emulator::lane() / 2) % 4; }
  METAL_FUNC static unsigned col() { return ((metal_emulator::lane() / 4) & 2) * 2 + (metal_emulator::lane() % 2) * 2; }

  METAL_FUNC simdgroup_matrix() : held((T)NAN) {}
  // x on the diagonal, 0 elsewhere
  METAL_FUNC explicit simdgroup_matrix(T x) {
    held[0] = row() == col() ? x : T(0);
    held[1] = row() == col() + 1 ? x : T(0);
  }
  METAL_FUNC thread elements& thread_elements() thread { return held; }
  METAL_FUNC const thread elements& thread_elements() const thread { return held; }
};

template <class T, int ROWS, int COLS>
METAL_FUNC simdgroup_matrix<T, ROWS, COLS> make_filled_simdgroup_matrix(T x) {
  simdgroup_matrix<T, ROWS, COLS> m;
  m.thread_elements()[0] = x;
  m.thread_elements()[1] = x;
  return m;
}

}  // namespace metal

namespace metal_emulator {

// Where element k (0 or 1) of this lane lies in memory; origin is (x = column, y = row)
template <class M>
METAL_FUNC ulong matrix_offset(unsigned k, ulong elements_per_row, metal::vec<ulong, 2> origin, bool transpose) {
  ulong r = transpose ? M::col() + k : M::row();
  ulong c = transpose ? M::row() : M::col() + k;
  return (origin.y + r) * elements_per_row + origin.x + c;
}

#if defined(METAL_EMULATOR_PTX)
// d = a * b + c from shuffles: row `row` of A lies in lanes that share its row, column `col` of B in lanes that share
// its column
template <class TA, class TB>
METAL_FUNC void matrix_multiply(float* d, metal::vec<TA, 2> a, metal::vec<TB, 2> b, const float* c) {
  using M = metal::simdgroup_matrix<float, 8, 8>;
  unsigned a_lane = ((M::row() & 4) << 2) | ((M::row() & 3) << 1);
  unsigned b_lane = ((M::col() & 4) << 1) | ((M::col() >> 1) & 1);
  float d0 = c[0];
  float d1 = c[1];
  for (unsigned k = 0; k < 8; k++) {
    metal::vec<TA, 2> from_a = shuffle(a, a_lane | ((k & 4) << 1) | ((k >> 1) & 1), 0);
    metal::vec<TB, 2> from_b = shuffle(b, b_lane | ((k & 4) << 2) | ((k & 3) << 1), 0);
    float x = (float)from_a.data[k & 1];
    d0 += x * (float)from_b.data[0];
    d1 += x * (float)from_b.data[1];
  }
  d[0] = d0;
  d[1] = d1;
}
#endif

template <class TD, class TA, class TB>
METAL_FUNC void multiply(thread metal::simdgroup_matrix<TD, 8, 8>& d, metal::simdgroup_matrix<TA, 8, 8> a,
                         metal::simdgroup_matrix<TB, 8, 8> b, const thread float* c, metal_emulator_site site) {
  float out[2];
#if defined(METAL_EMULATOR_PTX)
  matrix_multiply(out, a.thread_elements(), b.thread_elements(), c);
#else
  float from_a[2] = {(float)a.thread_elements()[0], (float)a.thread_elements()[1]};
  float from_b[2] = {(float)b.thread_elements()[0], (float)b.thread_elements()[1]};
  matrix_multiply(out, from_a, from_b, c, site);
#endif
  d.thread_elements()[0] = (TD)out[0];
  d.thread_elements()[1] = (TD)out[1];
}

}  // namespace metal_emulator

namespace metal {

template <class T, int ROWS, int COLS, class P>
METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, ROWS, COLS>& m, const P* source,
                               ulong elements_per_row = COLS, ulong2 origin = ulong2(0), bool transpose = false,
                               METAL_EMULATOR_SITE) {
  using M = simdgroup_matrix<T, ROWS, COLS>;
  m.thread_elements()[0] = source[metal_emulator::matrix_offset<M>(0, elements_per_row, origin, transpose)];
  m.thread_elements()[1] = source[metal_emulator::matrix_offset<M>(1, elements_per_row, origin, transpose)];
  metal_emulator::matrix_access(site);
}

template <class T, int ROWS, int COLS, class P>
METAL_FUNC void simdgroup_store(simdgroup_matrix<T, ROWS, COLS> m, P* target, ulong elements_per_row = COLS,
                                ulong2 origin = ulong2(0), bool transpose = false, METAL_EMULATOR_SITE) {
  using M = simdgroup_matrix<T, ROWS, COLS>;
  target[metal_emulator::matrix_offset<M>(0, elements_per_row, origin, transpose)] = m.thread_elements()[0];
  target[metal_emulator::matrix_offset<M>(1, elements_per_row, origin, transpose)] = m.thread_elements()[1];
  metal_emulator::matrix_access(site);
}

template <class TD, class TA, class TB, class TC>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<TD, 8, 8>& d, simdgroup_matrix<TA, 8, 8> a,
                                              simdgroup_matrix<TB, 8, 8> b, simdgroup_matrix<TC, 8, 8> c,
                                              METAL_EMULATOR_SITE) {
  float from_c[2] = {(float)c.thread_elements()[0], (float)c.thread_elements()[1]};
  metal_emulator::multiply(d, a, b, from_c, site);
}

template <class TD, class TA, class TB>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<TD, 8, 8>& d, simdgroup_matrix<TA, 8, 8> a,
                                   simdgroup_matrix<TB, 8, 8> b, METAL_EMULATOR_SITE) {
  float zero[2] = {0.0f, 0.0f};
  metal_emulator::multiply(d, a, b, zero, site);
}

}  // namespace metal

typedef metal::simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef metal::simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef metal::simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
