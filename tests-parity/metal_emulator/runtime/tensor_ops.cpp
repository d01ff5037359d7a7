// Products, row reductions and conversions of tensors that a simdgroup holds together. Each is computed once, by the
// first lane that comes back from the meeting.
#include <algorithm>
#include <cstring>
#include "runtime.h"
#include "tensor_layout.h"

using namespace runtime;

namespace {

typedef metal_emulator_operand Operand;
typedef metal_emulator_product Product;
typedef std::vector<float> Matrix;

size_t size_of(int type) { return type == METAL_EMULATOR_FLOAT ? 4 : 2; }

float value_of(const void* p, int type) {
  if (type == METAL_EMULATOR_FLOAT) return *(const float*)p;
  return type == METAL_EMULATOR_BFLOAT ? float(*(const __bf16*)p) : float(*(const _Float16*)p);
}

// What is left of a float side if precision is relaxed: ten bits of its mantissa, the others cut off
float relaxed(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= ~0x1FFFu;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Element (row, column) of a tensor in memory, 0 outside its extents. Along the reduced dimension an op of static k
// does not look at the extents, and reads whatever lies there.
float from_memory(const Operand& o, long row, long column, bool unguarded_rows, bool unguarded_columns, void* code) {
  const bool past_rows = row >= o.extent[1];
  const bool past_columns = column >= o.extent[0];
  if ((past_rows && unguarded_rows) || (past_columns && unguarded_columns)) {
    report(UNDEFINED_BEHAVIOUR, code, "matmul2d of static k: a tensor ends before k does");
    return __builtin_nanf("");
  }
  if (past_rows || past_columns) return 0;
  const long at = row * o.stride[1] + column * o.stride[0];
  const char* p = (const char*)o.data + at * long(size_of(o.type));
  access(p, size_of(o.type), false, false, code, true);
  return value_of(p, o.type);
}

// The elements of all lanes, put together
template <typename Elements>
Matrix gathered(const TensorLayout& l, int rows, int columns, int capacity, Elements elements) {
  Matrix m(rows * columns, 0);
  for (int lane = 0; lane < int(kLanes); lane++) {
    for (int i = 0; i < capacity; i++) {
      const int at = l.element[lane * capacity + i];
      if (at != kNoElement) m[at] = elements(lane, i);
    }
  }
  return m;
}

const Product& product_of(Exchange* e, int lane) { return **(const Product**)e->slot[lane]; }

// One side of a product as rows x columns, of which k is one
Matrix side_of(Exchange* e, Operand Product::*side, int rows, int columns, void* code) {
  const Product& first = product_of(e, 0);
  const Operand& o = first.*side;
  const bool is_left = side == &Product::left;
  const bool transposed = is_left ? first.transpose_left : first.transpose_right;
  Matrix m;
  if (o.role == METAL_EMULATOR_MEMORY) {
    const bool static_k = first.k >= 0;
    const bool k_is_row = is_left == transposed;  // of the tensor in memory
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        m.push_back(from_memory(o, transposed ? c : r, transposed ? r : c, static_k && k_is_row, static_k && !k_is_row,
                                code));
      }
    }
  } else {
    m = gathered(tensor_layout(o.role, rows, columns, o.capacity), rows, columns, o.capacity, [&](int lane, int i) {
      const Operand& own = product_of(e, lane).*side;
      return value_of((const char*)own.data + i * size_of(own.type), own.type);
    });
  }
  if (first.relaxed && o.type == METAL_EMULATOR_FLOAT) std::transform(m.begin(), m.end(), m.begin(), relaxed);
  return m;
}

bool same_tensor(const Operand& a, const Operand& b) {
  if (a.role != METAL_EMULATOR_MEMORY) return a.role == b.role;
  return a.data == b.data && !memcmp(a.extent, b.extent, sizeof a.extent) &&
         !memcmp(a.stride, b.stride, sizeof a.stride);
}

// Whether all lanes name the same tensors
bool agreed(Exchange* e, void* code) {
  const Product& first = product_of(e, 0);
  for (int lane = 1; lane < int(kLanes); lane++) {
    const Product& other = product_of(e, lane);
    if (same_tensor(first.left, other.left) && same_tensor(first.right, other.right)) continue;
    report(SIMDGROUP_DIVERGENCE, code, "lanes 0 and %d give matmul2d different tensors", lane);
    stop();
    return false;
  }
  return true;
}

void multiply(Exchange* e, void* code) {
  if (!agreed(e, code)) return;
  const Product& p = product_of(e, 0);
  const int k = p.k >= 0 ? p.k : int(p.left.extent[p.transpose_left ? 1 : 0]);
  const Matrix a = side_of(e, &Product::left, p.m, k, code);
  const Matrix b = side_of(e, &Product::right, k, p.n, code);
  Matrix d(p.m * p.n, 0);
  for (int r = 0; r < p.m; r++) {
    for (int i = 0; i < k; i++) {
      for (int c = 0; c < p.n; c++) d[r * p.n + c] += a[r * k + i] * b[i * p.n + c];
    }
  }
  const TensorLayout& l = tensor_layout(METAL_EMULATOR_DESTINATION, p.m, p.n, p.capacity);
  for (int lane = 0; lane < int(kLanes); lane++) {
    float* to = product_of(e, lane).destination;
    for (int i = 0; i < p.capacity; i++) {
      const int at = l.element[lane * p.capacity + i];
      if (at != kNoElement) to[i] = p.accumulate ? to[i] + d[at] : d[at];
    }
  }
}

// What a lane hands over, and where it wants the result
struct Transfer {
  const float* from;
  float* to;
};

const Transfer& transfer_of(Exchange* e, int lane) { return *(const Transfer*)e->slot[lane]; }

// True in the lane that computes the result for all of them
bool first_back(Exchange* e) {
  const bool first = !e->reduced;
  e->reduced = true;
  return first;
}

enum Reduction { SUM, MAX, MIN };

float combined(float a, float b, int operation) {
  return operation == SUM ? a + b : (operation == MAX ? std::max(a, b) : std::min(a, b));
}

}  // namespace

extern "C" void metal_emulator_tensor_misuse(const char* what) {
  report(UNDEFINED_BEHAVIOUR, __builtin_return_address(0), "%s", what);
}

extern "C" void metal_emulator_tensor_multiply(const metal_emulator_product* product, unsigned site) {
  void* code = __builtin_return_address(0);
  Exchange* e = meet(&product, sizeof product, TENSOR_PRODUCT, site, code);
  if (first_back(e)) multiply(e, code);
}

extern "C" void metal_emulator_tensor_reduce_rows(const float* from, float* to, int rows, int columns, int capacity,
                                                  int operation, float identity, unsigned site) {
  const Transfer mine = {from, to};
  Exchange* e = meet(&mine, sizeof mine, TENSOR_OPERATION, site, __builtin_return_address(0));
  if (!first_back(e)) return;
  const TensorLayout& l = tensor_layout(METAL_EMULATOR_DESTINATION, rows, columns, capacity);
  const Matrix m =
      gathered(l, rows, columns, capacity, [&](int lane, int i) { return transfer_of(e, lane).from[i]; });
  Matrix result(rows, identity);
  for (int i = 0; i < rows * columns; i++) result[i / columns] = combined(result[i / columns], m[i], operation);
  for (int lane = 0; lane < int(kLanes); lane++) {
    for (int i = 0; i < rows; i++) {
      const int row = l.row[lane * rows + i];
      if (row != kNoElement) transfer_of(e, lane).to[i] = result[row];
    }
  }
}

// A destination's elements, laid out as those of a left side of the same size
extern "C" void metal_emulator_tensor_convert(const float* from, int from_capacity, float* to, int to_capacity,
                                              int rows, int columns, unsigned site) {
  const Transfer mine = {from, to};
  Exchange* e = meet(&mine, sizeof mine, TENSOR_OPERATION, site, __builtin_return_address(0));
  if (!first_back(e)) return;
  const TensorLayout& source = tensor_layout(METAL_EMULATOR_DESTINATION, rows, columns, from_capacity);
  const TensorLayout& target = tensor_layout(METAL_EMULATOR_LEFT, rows, columns, to_capacity);
  const Matrix m =
      gathered(source, rows, columns, from_capacity, [&](int lane, int i) { return transfer_of(e, lane).from[i]; });
  for (int lane = 0; lane < int(kLanes); lane++) {
    for (int i = 0; i < to_capacity; i++) {
      const int at = target.element[lane * to_capacity + i];
      if (at != kNoElement) transfer_of(e, lane).to[i] = m[at];
    }
  }
}
