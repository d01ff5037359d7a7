// matmul2d of one simdgroup, which drives the matrix units of Apple10 (M5): the only file that names mpp::.
//
//   across:  S [16 rows][16 columns] = rows [16][D] . columns [16][D]     both from memory
//   along:   O [16 rows][D] += W [16 rows][16 columns] . columns [16][D]  W from registers
//
// The simdgroup holds S and O as cooperative tensors. Which lane has which element is not specified and differs between
// GPUs, so it is asked for: whether a slot holds an element, and its (column, row). Whether S can be the W of another
// product as it is has to be asked as well; where it cannot, it goes through threadgroup memory.
//
// The unit cuts ten bits of mantissa out of a float. W is rounded to as many before, to nearest, so nothing is lost.
// A product of static depth reads past the extents of a tensor. So where channels are fewer than D, `across` takes its
// depth from the tensors, and `along` always has 16 columns to read.
// Source: MPPTensorOpsMatMul2d.h of the macOS SDK, for the names and what they promise.
#pragma once

namespace na {

constant constexpr int kSide = 16;  // rows of a patch, columns of a brick

// A matrix in memory, [rows][channels]: its extents and strides begin with the channels
template <typename T>
using Near = tensor<threadgroup T, dextents<int32_t, 2>, tensor_inline>;
template <typename T>
using Far = tensor<device T, dextents<int32_t, 2>, tensor_inline>;

// step: elements between two rows
template <typename T>
METAL_FUNC Near<T> near_view(threadgroup T* first, int dim, int step) {
  return Near<T>(first, dextents<int32_t, 2>(dim, kSide), array<int32_t, 2>{{1, step}});
}
// No product writes what it reads, but a tensor of constant elements is not known.
template <typename T>
METAL_FUNC Far<T> far_view(const device T* first, int dim, int step) {
  return Far<T>((device T*)first, dextents<int32_t, 2>(dim, kSide), array<int32_t, 2>{{1, step}});
}

// Rows times columns over DEPTH channels; 0: as many as the tensors have
template <typename T, typename Columns, int DEPTH>
struct Across {
  typedef mpp::tensor_ops::matmul2d<
      mpp::tensor_ops::matmul2d_descriptor(kSide, kSide, DEPTH == 0 ? int(dynamic_extent) : DEPTH, false, true, true,
                                           mpp::tensor_ops::matmul2d_descriptor::mode::multiply),
      execution_simdgroup>
      Op;
  typedef decltype(Op().template get_destination_cooperative_tensor<Near<T>, Columns, float>()) Products;
  // A value for each row of which the lane has products
  typedef decltype(Op().template get_row_reduction_destination_cooperative_tensor<Near<T>, Columns, float>()) RowValues;
  static METAL_FUNC Products products() {
    return Op().template get_destination_cooperative_tensor<Near<T>, Columns, float>();
  }
  static METAL_FUNC RowValues row_values() {
    return Op().template get_row_reduction_destination_cooperative_tensor<Near<T>, Columns, float>();
  }
  static METAL_FUNC void multiply(thread Products& s, Near<T> rows, Columns columns) {
    Op op;
    op.run(rows, columns, s);
  }
};

// Weights times columns, added to the sums of DIM channels
template <typename T, typename Columns, int DIM>
struct Along {
  typedef mpp::tensor_ops::matmul2d<
      mpp::tensor_ops::matmul2d_descriptor(kSide, DIM, kSide, false, false, true,
                                           mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate),
      execution_simdgroup>
      Op;
  typedef decltype(Op().template get_left_input_cooperative_tensor<float, T, float>()) Weights;
  typedef decltype(Op().template get_destination_cooperative_tensor<Weights, Columns, float>()) Sums;
  static METAL_FUNC Sums sums() {
    return Op().template get_destination_cooperative_tensor<Weights, Columns, float>();
  }
  // w: products of a brick, made into weights. spare: memory of the simdgroup for all of them
  template <typename Products>
  static METAL_FUNC void multiply(thread Sums& o, thread Products& w, Columns columns, threadgroup float* spare) {
    Op op;
    if (op.template is_compatible_as_left_input<float, T, float>(w)) {
      Weights left = op.template get_left_input_cooperative_tensor<float, T, float>(w);
      op.run(left, columns, o);
      return;
    }
    Near<float> between = near_view(spare, kSide, kSide);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // what was there has been used
    w.store(between);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    Weights left = op.template get_left_input_cooperative_tensor<float, T, float>();
    left.load(between);
    op.run(left, columns, o);
  }
};

// To nearest with ten bits of mantissa, which is all that the unit takes of a float
METAL_FUNC float ten_bits(float x) {
  const uint bits = as_type<uint>(x);
  const bool finite = (~bits & 0x7f800000u) != 0u;
  return finite ? as_type<float>((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu) : x;
}

// ---- elements, by slot: bit i of a word stands for slot i of a tensor of products

constant constexpr int kMostSlots = 16;

// Where an element belongs; (0, 0) if the slot has none
struct Place {
  ushort row;
  ushort column;
};

template <typename S>
METAL_FUNC Place place_of(thread S& s, ushort slot) {
  const auto at = s.get_multidimensional_index(slot);
  const bool valid = s.is_valid_element(slot);
  return {ushort(valid ? at[1] : 0), ushort(valid ? at[0] : 0)};
}

template <typename S>
METAL_FUNC void fill(thread S& s, float value) {
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) s[i] = value;
}

// The slots that hold an element
template <typename S>
METAL_FUNC uint elements_of(thread S& s) {
  uint bits = 0u;
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) bits |= s.is_valid_element(i) ? 1u << i : 0u;
  return bits;
}

// Those whose row sees their column. seen: bit c is set if the lane's own row, lane % 16, sees column c
template <typename S>
METAL_FUNC uint seen_elements(thread S& s, uint elements, uint seen) {
  uint bits = 0u;
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
    const Place at = place_of(s, i);
    bits |= (simd_shuffle(seen, at.row) >> at.column & 1u) << i;
  }
  return bits & elements;
}

// ---- values of rows

// The slot of the row's value for each element: the layout does not change, so it is asked for once
struct RowSlots {
  uchar at[kMostSlots];
  template <typename S, typename R>
  METAL_FUNC void find(thread S& s, thread R& values) thread {
    NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
      at[i] = uchar(values.map_iterator(s.begin() + i) - values.begin());
    }
  }
};

template <typename S, typename R>
METAL_FUNC void largest_of_rows(thread S& s, thread R& values) {
  mpp::tensor_ops::reduce_rows(s, values, mpp::tensor_ops::reduction_operation::max, -MAXFLOAT);
}

template <typename S, typename R>
METAL_FUNC void sums_of_rows(thread S& s, thread R& values) {
  mpp::tensor_ops::reduce_rows(s, values, mpp::tensor_ops::reduction_operation::sum, 0.0f);
}

// Puts the values of all rows into a line of threadgroup memory: the lane does that has the row's first element
template <typename S, typename R>
METAL_FUNC void publish(threadgroup float* line, thread S& s, thread R& values, const thread RowSlots& slots,
                        uint elements) {
  simdgroup_barrier(mem_flags::mem_threadgroup);  // what was there has been used
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
    const Place at = place_of(s, i);
    if ((elements >> i & 1u) != 0u && at.column == 0) line[at.row] = values[slots.at[i]];
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

// The value of one row, the lane's own
template <typename S, typename R>
METAL_FUNC float value_of_row(threadgroup float* line, thread S& s, thread R& values, const thread RowSlots& slots,
                              uint elements, int row) {
  publish(line, s, values, slots, elements);
  return line[row];
}

// Multiplies each row of sums with its value in a line
template <typename O>
METAL_FUNC void scale_rows(thread O& o, const threadgroup float* line) {
  NA_UNROLL for (ushort i = 0; i < o.get_capacity(); ++i) o[i] *= line[place_of(o, i).row];
}

// The rows of sums that exist, to device memory. at, store, factor: of the lane's own row, lane % 16
template <typename O, typename R>
METAL_FUNC void write_rows(device R* to, thread O& o, long at, bool store, float factor, int dim) {
  NA_UNROLL for (ushort i = 0; i < o.get_capacity(); ++i) {
    const Place place = place_of(o, i);
    const long row = from_lane(at, place.row);
    const float times = simd_shuffle(factor, place.row);
    const bool exists = simd_shuffle(uint(store), place.row) != 0u;
    if (o.is_valid_element(i) && exists && place.column < dim) to[row + place.column] = R(o[i] * times);
  }
}

}  // namespace na
