// <metal_tensor> and mpp::tensor_ops: tensors in memory, and products that one simdgroup makes together (matmul2d).
//
// A simdgroup holds a matrix as a cooperative tensor: each lane has a few of its elements, and which ones is left to
// the implementation. Here the seed of the launch decides (runtime/tensor_layout.cpp), some slots hold no element,
// and a program learns where an element belongs only by asking: is_valid_element, get_multidimensional_index. What was
// never set is NaN. The first dimension is the fastest: a matrix [rows][columns] has extents (columns, rows), and an
// element's index is (column, row).
//
// Refused by the compiler: what Metal's headers refuse, and what is not needed here: scopes of several simdgroups,
// destinations in memory, integers, ranks other than 2. Not here at all: slices, tensors that a host binds.
#pragma once
#include "../runtime/tensor_interface.h"

namespace metal {

constexpr size_t dynamic_extent = ~size_t(0);

struct execution_simdgroup {};
struct tensor_inline {};

template <class I, int RANK>
struct dextents {
  static_assert(RANK == 2, "the emulator has tensors of rank 2");
  I size[2];
  METAL_FUNC dextents(I columns, I rows) : size{columns, rows} {}
};

// T: the element type with its address space
template <class T, class E, class TAG>
struct tensor {
  static_assert(is_same_v<TAG, tensor_inline>, "the emulator has tensor_inline only");
  using element_type = T;
  T* data;
  long size[2];
  long stride[2];
  METAL_FUNC tensor(T* p, E e) : data(p), size{e.size[0], e.size[1]}, stride{1, e.size[0]} {}
  template <class I>
  METAL_FUNC tensor(T* p, E e, array<I, 2> s) : data(p), size{e.size[0], e.size[1]}, stride{s[0], s[1]} {}
};

}  // namespace metal

namespace metal_emulator {

// Slots of each lane that hold no element
#if defined(METAL_EMULATOR_PTX)
constexpr int kSpareSlots = 0;
#else
constexpr int kSpareSlots = 2;
#endif

// How a simdgroup holds a matrix of ROWS x COLUMNS in one of an op's roles
template <int ROLE, int ROWS, int COLUMNS>
struct MatrixLayout {
  static constexpr int role = ROLE;
  static constexpr int rows = ROWS;
  static constexpr int columns = COLUMNS;
  static constexpr int capacity = ROWS * COLUMNS / 32 + kSpareSlots;
  // Row * COLUMNS + column of the element in a slot of this lane; negative if there is none
  METAL_FUNC static int element(int slot) { return tensor_element(ROLE, ROWS, COLUMNS, capacity, slot); }
};
// One value for each row of a destination
template <int ROWS, int COLUMNS>
struct RowLayout {
  static constexpr int role = METAL_EMULATOR_ROWS;
  static constexpr int rows = ROWS;
  static constexpr int columns = COLUMNS;
  static constexpr int capacity = ROWS;
  using matrix = MatrixLayout<METAL_EMULATOR_DESTINATION, ROWS, COLUMNS>;
  METAL_FUNC static int element(int slot) { return tensor_row(ROWS, COLUMNS, matrix::capacity, slot); }
};

template <class X>
constexpr bool is_cooperative = false;

}  // namespace metal_emulator

namespace metal {

template <class T, class L>
struct cooperative_tensor {
  using element_type = T;
  using layout = L;
  T elements[L::capacity];

  struct iterator {
    thread cooperative_tensor* owner;
    int slot;
    METAL_FUNC iterator operator+(int n) const { return {owner, slot + n}; }
    METAL_FUNC int operator-(iterator o) const { return slot - o.slot; }
  };

  METAL_FUNC constexpr uint16_t get_capacity() const thread { return L::capacity; }
  METAL_FUNC bool is_valid_element(uint16_t i) const thread { return L::element(i) >= 0; }
  METAL_FUNC thread T& operator[](uint16_t i) thread { return elements[i]; }
  METAL_FUNC iterator begin() thread { return {this, 0}; }
  // (column, row), or (row) of a row's value; of a slot without an element, nothing that could be used
  METAL_FUNC array<int, 2> get_multidimensional_index(uint16_t i) const thread {
    const int e = L::element(i);
    if (e < 0) return {{-12345, -12345}};
    if (L::role == METAL_EMULATOR_ROWS) return {{e, 0}};
    return {{e % L::columns, e / L::columns}};
  }

  // Of values of rows: the slot of the row in which another tensor's element lies
  template <class I>
  METAL_FUNC iterator map_iterator(I from) thread {
    static_assert(L::role == METAL_EMULATOR_ROWS, "map_iterator belongs to the values of rows");
    using F = typename metal_emulator::bare<decltype(*from.owner)>::layout;
    static_assert(F::rows == L::rows, "the tensors have different rows");
    const bool own = F::role == METAL_EMULATOR_DESTINATION && F::columns == L::columns;
    if (!own) metal_emulator::tensor_misuse("map_iterator from a tensor of another op");
    const int e = F::element(from.slot);
    if (e < 0) return {this, 0};
    return {this, metal_emulator::tensor_row_slot(L::rows, L::columns, L::matrix::capacity, e / F::columns)};
  }

  // Elements outside the extents are read as 0, and not written
  template <class M>
  METAL_FUNC void load(M from, METAL_EMULATOR_SITE) thread {
    metal_emulator::matrix_access(site);
    for (int i = 0; i < L::capacity; ++i) {
      const int e = L::element(i);
      if (e < 0) continue;
      const long c = e % L::columns;
      const long r = e / L::columns;
      const bool inside = c < from.size[0] && r < from.size[1];
      elements[i] = inside ? T(from.data[c * from.stride[0] + r * from.stride[1]]) : T(0);
    }
  }
  template <class M>
  METAL_FUNC void store(M to, METAL_EMULATOR_SITE) const thread {
    static_assert(is_same_v<T, metal_emulator::bare<typename M::element_type>>, "store: the element types differ");
    metal_emulator::matrix_access(site);
    for (int i = 0; i < L::capacity; ++i) {
      const int e = L::element(i);
      if (e < 0) continue;
      const long c = e % L::columns;
      const long r = e / L::columns;
      if (c < to.size[0] && r < to.size[1]) to.data[c * to.stride[0] + r * to.stride[1]] = elements[i];
    }
  }
};

}  // namespace metal

namespace metal_emulator {

template <class T, class L>
constexpr bool is_cooperative<metal::cooperative_tensor<T, L>> = true;

}  // namespace metal_emulator

namespace mpp {
namespace tensor_ops {

enum class reduction_operation { sum, max, min };

// Metal has it as a template argument of class type. C++17 has none, but turns it into a number, which will do.
struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;
  constexpr matmul2d_descriptor(int m, int n, int k = static_cast<int>(metal::dynamic_extent),
                                bool transpose_left = false, bool transpose_right = false,
                                bool relaxed_precision = false,
                                mode matmul_mode = mode::multiply)
      : m(m),
        n(n),
        k(k),
        transpose_left(transpose_left),
        transpose_right(transpose_right),
        relaxed_precision(relaxed_precision),
        matmul_mode(matmul_mode) {}
  constexpr operator ulong() const {
    return ulong(m) | ulong(n) << 16 | ulong(k + 1) << 32 | ulong(transpose_left) << 60 | ulong(transpose_right) << 61 |
           ulong(relaxed_precision) << 62 | ulong(matmul_mode == mode::multiply_accumulate) << 63;
  }
};

template <ulong DESCRIPTOR, class SCOPE>
struct matmul2d {
  static constexpr int M = int(DESCRIPTOR & 0xffff);
  static constexpr int N = int(DESCRIPTOR >> 16 & 0xffff);
  static constexpr int K = int(DESCRIPTOR >> 32 & 0xffff) - 1;  // negative: what the left side has
  static constexpr bool TRANSPOSE_LEFT = (DESCRIPTOR >> 60 & 1) != 0;
  static constexpr bool TRANSPOSE_RIGHT = (DESCRIPTOR >> 61 & 1) != 0;
  static constexpr bool RELAXED = (DESCRIPTOR >> 62 & 1) != 0;
  static constexpr bool ACCUMULATE = (DESCRIPTOR >> 63 & 1) != 0;
  static constexpr bool DYNAMIC = K < 0;
  static_assert(metal::is_same_v<SCOPE, metal::execution_simdgroup>, "the emulator has execution_simdgroup only");
  static_assert(M % 16 == 0 || N % 16 == 0, "At least one of M or N must be a multiple of 16");
  static_assert(DYNAMIC || K % 16 == 0, "K must be dynamic or a multiple of 16");
  static_assert(M * N % 32 == 0, "the emulator spreads whole multiples of 32 elements");
  template <int ROLE, int ROWS, int COLUMNS>
  using Layout = metal_emulator::MatrixLayout<ROLE, ROWS, COLUMNS>;
  using Destination = metal::cooperative_tensor<float, Layout<METAL_EMULATOR_DESTINATION, M, N>>;
  using Rows = metal::cooperative_tensor<float, metal_emulator::RowLayout<M, N>>;
  template <class T>
  using Left = metal::cooperative_tensor<T, Layout<METAL_EMULATOR_LEFT, M, DYNAMIC ? 16 : K>>;

  template <class A, class B, class C>
  METAL_FUNC void run(thread A& left, thread B& right, thread C& destination, METAL_EMULATOR_SITE) const {
    static_assert(metal::is_same_v<C, Destination>, "the destination belongs to another op");
    static_assert(!metal_emulator::is_cooperative<B>, "the emulator has no cooperative right side");
    static_assert(!metal_emulator::is_cooperative<A> || !DYNAMIC, "a cooperative side needs a static K");
    metal_emulator::tensor_multiply<matmul2d>(left, right, destination, site);
  }

  template <class A, class B, class T>
  METAL_FUNC Destination get_destination_cooperative_tensor() const {
    static_assert(metal::is_same_v<T, float>, "the emulator accumulates in float");
    Destination unset;
    return unset;
  }
  template <class A, class B, class T>
  METAL_FUNC Rows get_row_reduction_destination_cooperative_tensor() const {
    Rows unset;
    return unset;
  }
  template <class A, class B, class T>
  METAL_FUNC Left<A> get_left_input_cooperative_tensor() const {
    Left<A> unset;
    return unset;
  }
  template <class A, class B, class T, class S>
  METAL_FUNC bool is_compatible_as_left_input(const thread S&) const {
    using L = typename S::layout;
    return metal::is_same_v<A, typename S::element_type> && L::rows == M && L::columns == K &&
           metal_emulator::tensor_converts(M, K);
  }
  template <class A, class B, class T, class S>
  METAL_FUNC Left<A> get_left_input_cooperative_tensor(thread S& from, METAL_EMULATOR_SITE) const {
    static_assert(metal::is_same_v<A, typename S::element_type>, "the input's element type is the source's");
    if (!is_compatible_as_left_input<A, B, T>(from)) {
      metal_emulator::tensor_misuse("get_left_input_cooperative_tensor where is_compatible_as_left_input says no");
    }
    Left<A> to;
    metal_emulator::tensor_convert(from, to, site);
    return to;
  }
};

template <class S, class R>
METAL_FUNC void reduce_rows(thread S& from, thread R& to, reduction_operation operation, float identity = 0.0f,
                            METAL_EMULATOR_SITE) {
  using F = typename S::layout;
  static_assert(F::rows == R::layout::rows && F::columns == R::layout::columns, "reduce_rows: of another op");
  metal_emulator::tensor_reduce_rows(from, to, int(operation), identity, site);
}

}  // namespace tensor_ops
}  // namespace mpp
