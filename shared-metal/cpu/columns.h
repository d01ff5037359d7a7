// The columns that a patch reads: a walk over its box, in blocks of up to 64, each with its lanes' mask.
//
//   for z, y in the box:  for x in the box, a run of columns at a time:
//     append their rows (read in place, or converted into scratch memory), scalars, pair indices and masks to the block
//     when the block is full: body.take(block)
//
// A block is as large as any other of the same walk, give or take one run. It is `masked` unless all lanes see all of it.
#pragma once

#include "lanes.h"

namespace natten {
namespace NATTEN_ISA {

constexpr int kBlock = 64;

// A number per (row, column) pair that lies in memory at lane[i] + the column's part: the slot of a window, or an entry
// of the bias table. Slots of a transposed walk count from the start of the column's window.
template <typename C>
struct PairIndex {
  int64_t lane[C::N];
  int64_t step[3];
  bool from_start = false;
  Axis axis[3];
  int length[3];  // of the window's keys in this dilation group

  int64_t column(int a, int x) const {
    if (!from_start) return x * step[a];
    return -na::window(x, length[a], axis[a].w, axis[a].s, axis[a].causal).low * step[a];
  }
};

// The columns of one tensor: rows of `width` channels
template <typename T>
struct Side {
  char* base = nullptr;  // of position 0; NULL: this side is not read
  int64_t step[3] = {0, 0, 0};
  int64_t channel = 1;
  int dtype = 0, size = 1, width = 0;
  T* copies = nullptr;  // kBlock rows of `width`; NULL: rows are read in place

  char* at(int z, int y, int x) const { return base + (z * step[0] + y * step[1] + x * step[2]) * size; }

  const T* row(const char* from, int slot) const {
    if (!copies) return reinterpret_cast<const T*>(from);
    T* copy = copies + int64_t(slot) * width;
    read_row(dtype, from, channel, width, copy);
    return copy;
  }
};

template <typename T>
bool reads_in_place(const Tensor& tensor) {
  return tensor.channel == 1 && element_size(tensor.dtype) == int(sizeof(T));
}

template <typename T>
Side<T> side_of(const Tensor& tensor, int batch, int head, const int* group, const int* step, int width, T* copies) {
  Side<T> side;
  int64_t at = batch * tensor.batch + head * tensor.head;
  for (int a = 0; a < 3; ++a) {
    at += group[a] * tensor.axis[a];
    side.step[a] = step[a] * tensor.axis[a];
  }
  side.base = tensor.at(at);
  side.channel = tensor.channel, side.dtype = tensor.dtype, side.width = width;
  side.size = element_size(tensor.dtype);
  side.copies = reads_in_place<T>(tensor) ? nullptr : copies;
  return side;
}

// What a walk reads of its columns; lse and delta are columns of width 1
template <typename C>
struct Columns {
  typedef typename C::T T;
  Side<T> a, b, lse, delta;
  Side<T> slots;  // of the columns' queries: only their addresses are taken
  const PairIndex<C>*bias = nullptr, *slot = nullptr;
};

template <typename C>
struct Block {
  typedef typename C::T T;
  static constexpr int V = C::V, W = C::W;
  int count = 0, capacity = kBlock;
  int plain = 0;  // leading columns that are additional keys: no bias, no mask
  bool masked = false;
  const T* a[kBlock];
  const T* b[kBlock];
  T lse[kBlock], delta[kBlock];
  char* slots[kBlock];
  int64_t bias[kBlock], slot[kBlock];  // the columns' parts of the pair indices
  Mask<T> mask[kBlock * V];

  void clear() {
    count = plain = 0;
    masked = false;
  }
};

template <typename C>
NATTEN_INLINE MaskOf<C> sees(const Lanes<C>& lanes, int axis, int v, int x) {
  typedef typename C::T T;
  typedef typename Lane<T>::Integer Integer;
  Mask<T> low, high;
  memcpy(&low, &lanes.low[axis][v * C::W], sizeof(low));
  memcpy(&high, &lanes.high[axis][v * C::W], sizeof(high));
  return (low <= Integer(x)) & (high > Integer(x));
}

inline int64_t box_columns(const Span* box) {
  int64_t columns = 1;
  for (int a = 0; a < 3; ++a) columns *= na::maximum(box[a].high - box[a].low, 0);
  return columns;
}

template <typename C, typename Body>
class ColumnWalk {
 public:
  typedef typename C::T T;
  ColumnWalk(const Lanes<C>& lanes, Block<C>& block, Body& body) : lanes_(lanes), block_(block), body_(body) {}

  // `total` columns are to come: blocks of equal size
  void expect(int64_t total) {
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    block_.clear();
    block_.capacity = blocks ? int((total + blocks - 1) / blocks) : kBlock;
  }

  // all_seen: every lane sees every column of the box
  void box(const Span* box, const Columns<C>& columns, bool all_seen) {
    constexpr int V = C::V;
    for (int z = box[0].low; z < box[0].high; ++z) {
      for (int y = box[1].low; y < box[1].high; ++y) {
        const bool row_seen = all_seen || (lanes_.all_live && holds(0, z) && holds(1, y));
        for (int v = 0; v < V; ++v) row_mask_[v] = row_seen ? ~Mask<T>{} : sees(lanes_, 0, v, z) & sees(lanes_, 1, v, y);
        for (int x = box[2].low; x < box[2].high;) {
          const int run = na::minimum(box[2].high - x, block_.capacity - block_.count);
          const bool seen = all_seen || (row_seen && lanes_.common[2].low <= x && x + run <= lanes_.common[2].high);
          append(columns, z, y, x, run);
          mark(x, run, seen);
          block_.count += run;
          x += run;
          if (block_.count == block_.capacity) flush();
        }
      }
    }
  }

  void flush() {
    if (block_.count) body_.take(block_);
    block_.clear();
  }

 private:
  bool holds(int axis, int x) const { return lanes_.common[axis].low <= x && x < lanes_.common[axis].high; }

  void append(const Columns<C>& columns, int z, int y, int x, int run) {
    const int at = block_.count;
    rows(columns.a, z, y, x, run, block_.a + at);
    rows(columns.b, z, y, x, run, block_.b + at);
    scalars(columns.lse, z, y, x, run, block_.lse + at);
    scalars(columns.delta, z, y, x, run, block_.delta + at);
    indices(columns.bias, z, y, x, run, block_.bias + at);
    indices(columns.slot, z, y, x, run, block_.slot + at);
    if (!columns.slots.base) return;
    for (int i = 0; i < run; ++i) block_.slots[at + i] = columns.slots.at(z, y, x + i);
  }

  void indices(const PairIndex<C>* index, int z, int y, int x, int run, int64_t* out) const {
    if (!index) return;
    const int64_t line = index->column(0, z) + index->column(1, y);
    for (int i = 0; i < run; ++i) out[i] = line + index->column(2, x + i);
  }

  void rows(const Side<T>& side, int z, int y, int x, int run, const T** out) const {
    if (!side.base) return;
    const char* from = side.at(z, y, x);
    for (int i = 0; i < run; ++i) out[i] = side.row(from + i * side.step[2] * side.size, block_.count + i);
  }

  void scalars(const Side<T>& side, int z, int y, int x, int run, T* out) const {
    if (!side.base) return;
    const T* from = reinterpret_cast<const T*>(side.at(z, y, x));
    for (int i = 0; i < run; ++i) out[i] = from[i * side.step[2]];
  }

  void mark(int x, int run, bool seen) {
    constexpr int V = C::V;
    Mask<T>* mask = block_.mask + block_.count * V;
    block_.masked = block_.masked || !seen;
    for (int i = 0; i < run; ++i) {
      for (int v = 0; v < V; ++v) {
        const Mask<T> all = ~Mask<T>{};
        mask[i * V + v] = seen ? all : sees(lanes_, 2, v, x + i) & row_mask_[v];
      }
    }
  }

  const Lanes<C>& lanes_;
  Block<C>& block_;
  Body& body_;
  Mask<T> row_mask_[C::V];
};

}  // namespace NATTEN_ISA
}  // namespace natten
