// Tensor operations on the CPU: every one is a meeting of the lanes in the runtime
#pragma once

namespace metal {
template <class T, class E, class TAG>
struct tensor;
template <class T, class L>
struct cooperative_tensor;
}  // namespace metal

namespace metal_emulator {

template <class T>
constexpr int tensor_type = -1;
template <>
constexpr int tensor_type<half> = METAL_EMULATOR_HALF;
template <>
constexpr int tensor_type<bfloat> = METAL_EMULATOR_BFLOAT;
template <>
constexpr int tensor_type<float> = METAL_EMULATOR_FLOAT;

METAL_FUNC int tensor_element(int role, int rows, int columns, int capacity, int slot) {
  return metal_emulator_tensor_element(role, rows, columns, capacity, slot);
}
METAL_FUNC int tensor_row(int rows, int columns, int capacity, int slot) {
  return metal_emulator_tensor_row(rows, columns, capacity, slot);
}
METAL_FUNC int tensor_row_slot(int rows, int columns, int capacity, int row) {
  return metal_emulator_tensor_row_slot(rows, columns, capacity, row);
}
METAL_FUNC bool tensor_converts(int rows, int columns) { return metal_emulator_tensor_converts(rows, columns); }
METAL_FUNC void tensor_misuse(const char* what) { metal_emulator_tensor_misuse(what); }

template <class T, class L>
METAL_FUNC metal_emulator_operand operand_of(const metal::cooperative_tensor<T, L>& x) {
  static_assert(tensor_type<T> >= 0, "half, bfloat or float");
  return {x.elements, tensor_type<T>, L::role, L::capacity, {0, 0}, {0, 0}};
}
template <class T, class E, class TAG>
METAL_FUNC metal_emulator_operand operand_of(const metal::tensor<T, E, TAG>& x) {
  static_assert(tensor_type<T> >= 0, "half, bfloat or float");
  return {x.data, tensor_type<T>, METAL_EMULATOR_MEMORY, 0, {x.size[0], x.size[1]}, {x.stride[0], x.stride[1]}};
}

template <class OP, class A, class B, class C>
METAL_FUNC void tensor_multiply(const A& left, const B& right, C& destination, metal_emulator_site site) {
  const metal_emulator_product product = {operand_of(left),   operand_of(right), destination.elements,
                                          C::layout::capacity, OP::M,             OP::N,
                                          OP::K,               OP::TRANSPOSE_LEFT, OP::TRANSPOSE_RIGHT,
                                          OP::RELAXED,         OP::ACCUMULATE};
  metal_emulator_tensor_multiply(&product, site);
}

template <class S, class C>
METAL_FUNC void tensor_convert(const S& from, C& to, metal_emulator_site site) {
  using F = typename S::layout;
  metal_emulator_tensor_convert(from.elements, F::capacity, to.elements, C::layout::capacity, F::rows, F::columns,
                                site);
}

template <class S, class R>
METAL_FUNC void tensor_reduce_rows(const S& from, R& to, int operation, float identity, metal_emulator_site site) {
  using F = typename S::layout;
  metal_emulator_tensor_reduce_rows(from.elements, to.elements, F::rows, F::columns, F::capacity, operation, identity,
                                    site);
}

}  // namespace metal_emulator
