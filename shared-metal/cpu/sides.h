// What a walk reads of its columns: where the rows of each tensor lie, what belongs to a pair, what is read ahead.
#pragma once

#include "lanes.h"

namespace natten {
namespace NATTEN_ISA {

// Columns of a block, at most
constexpr int kBlock = 64;

// A number for each (row, column) pair, the sum lane[i] + the column's part: the slot of a window, or an entry of rpb.
// Slots of a transposed walk count from the start of the column's window.
template <typename C>
struct PairIndex {
  int64_t lane[C::N];
  int64_t step[3];
  bool from_start = false;
  Axis axis[3];
  int length[3];  // of the whole dilation group

  int64_t column(int a, int x) const {
    if (!from_start) return x * step[a];
    return -na::window(x, length[a], axis[a].w, axis[a].s, axis[a].causal).low * step[a];
  }
};

// The columns of one tensor: rows of `width` channels
template <typename T>
struct Side {
  char* base = nullptr;  // of the first token at hand; NULL: this side is not read
  // Elements from there to position 0, which in a piece may be far away, and from one position to the next. The offset
  // of a position at hand is small; on the way to it sums may wrap around.
  uint64_t origin = 0, step[3] = {0, 0, 0};
  int64_t channel = 1;
  int dtype = 0, size = 1, width = 0;
  int64_t ahead = 0;    // bytes from a column to that of the unit of work that comes next; 0: none
  int fresh = INT_MAX;  // columns from this x on are new to that unit
  T* copies = nullptr;  // kBlock rows of `width`, filled up to whole vectors; NULL: rows are read in place

  char* at(int z, int y, int x) const {
    return base + int64_t(origin + z * step[0] + y * step[1] + x * step[2]) * size;
  }

  const T* copy(const char* from, int slot) const {
    constexpr int W = Lane<T>::W;
    const int padded = (width + W - 1) / W * W;
    T* to = copies + int64_t(slot) * padded;
    read_row(dtype, from, channel, width, to);
    for (int d = width; d < padded; ++d) to[d] = T(0);
    return to;
  }
};

// The mask of the columns; empty if there is none
template <typename T, typename C>
Side<T> mask_of(const Tensor& mask, int batch, const Lanes<C>& lanes) {
  Side<T> side;
  if (!mask.data) return side;
  side.base = mask.data + batch * mask.batch;
  for (int a = 0; a < 3; ++a) {
    side.origin += uint64_t(lanes.column_origin[a]) * uint64_t(mask.axis[a]);
    side.step[a] = uint64_t(lanes.step[a] * mask.axis[a]);
  }
  return side;
}

template <typename T>
bool reads_in_place(const Tensor& tensor) {
  return tensor.channel == 1 && element_size(tensor.dtype) == int(sizeof(T));
}

template <typename T>
Side<T> side_of(const Tensor& tensor, int batch, int head, const int* origin, const int* step, int width,
                T* copies) {
  Side<T> side;
  side.base = tensor.at(batch * tensor.batch + head * tensor.head);
  for (int a = 0; a < 3; ++a) {
    side.origin += uint64_t(origin[a]) * uint64_t(tensor.axis[a]);
    side.step[a] = uint64_t(step[a] * tensor.axis[a]);
  }
  side.channel = tensor.channel, side.dtype = tensor.dtype, side.width = width;
  side.size = element_size(tensor.dtype);
  side.copies = reads_in_place<T>(tensor) && width % Lane<T>::W == 0 ? nullptr : copies;
  return side;
}

template <typename T, typename C>
Side<T> side_of(const Tensor& tensor, int batch, int head, const Lanes<C>& lanes, int width, T* copies) {
  Side<T> side = side_of(tensor, batch, head, lanes.column_origin, lanes.step, width, copies);
  side.ahead = lanes.ahead(tensor, head, lanes.next_columns(head));
  if (side.ahead != 0) side.fresh = lanes.fresh;
  return side;
}

// What a walk reads of its columns; stats are shift, norm and delta of a query, side by side
template <typename C>
struct Columns {
  typedef typename C::T T;
  Side<T> a, b, stats;
  Side<T> slots;  // of the columns' queries: only their addresses are taken
  Side<T> mask;   // one byte per column, 0 where no row sees it: such columns are skipped
  const PairIndex<C>*rpb = nullptr, *slot = nullptr;
};

}  // namespace NATTEN_ISA
}  // namespace natten
