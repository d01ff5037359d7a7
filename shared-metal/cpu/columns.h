// The columns that a patch reads: a walk over its box, in blocks of up to 64, each with its lanes' mask.
//
//   for each segment of the patch, the columns that the same panels see (the picture is in geometry.h):
//     for z, y in the segment:  for x in it, a run of columns at a time:
//       append their rows (read in place, or converted into scratch memory), scalars, pair indices and masks
//       when the block is full: body.take(block)
//
// Blocks of a segment have the same size, up to the length of a run. A block belongs to the vectors `on`, those of the
// panels that see the segment, and is `masked` unless all of their lanes see all of it.
#pragma once

#include "lanes.h"

namespace natten {
namespace NATTEN_ISA {

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
template <typename T>
Side<T> mask_of(const Tensor& mask, int batch, const int* origin, const int* step) {
  Side<T> side;
  if (!mask.data) return side;
  side.base = mask.data + batch * mask.batch;
  for (int a = 0; a < 3; ++a) {
    side.origin += uint64_t(origin[a]) * uint64_t(mask.axis[a]);
    side.step[a] = uint64_t(step[a] * mask.axis[a]);
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

// What a walk reads of its columns; stats are shift, norm and delta of a query, side by side
template <typename C>
struct Columns {
  typedef typename C::T T;
  Side<T> a, b, stats;
  Side<T> slots;  // of the columns' queries: only their addresses are taken
  Side<T> mask;   // one byte per column, 0 where no row sees it: such columns are skipped
  const PairIndex<C>*rpb = nullptr, *slot = nullptr;
};

template <typename C>
struct Block {
  typedef typename C::T T;
  static constexpr int V = C::V, W = C::W;
  int count = 0, capacity = kBlock;
  Vectors on = {0, V};             // the vectors that see the block
  Range ranges[C::N / kLaneGroup];  // for each group of lanes, the columns of the block that it sees
  bool masked = false;
  const T* a[kBlock];
  const T* b[kBlock];
  const T* stats[kBlock];
  char* slots[kBlock];
  int64_t rpb[kBlock], slot[kBlock];  // the columns' parts of the pair indices
  uint32_t sight[kBlock * V];  // bit l: lane l of the vector sees the column

  Mask<T> mask(int i, int v) const { return lanes_of<T>(sight[i * V + v]); }
  bool sees(int i, int v, int lane) const { return sight[i * V + v] >> lane & 1; }

  void clear() {
    count = 0;
    masked = false;
    for (Range& range : ranges) range = {kBlock, 0};
  }
};

// Columns of a patch that the same panels see
struct Segment {
  Vectors on;
  Span box[3], common[3];  // common: what all of these panels' lanes see
};

inline Span both(Span a, Span b) { return {na::maximum(a.low, b.low), na::minimum(a.high, b.high)}; }

// The segment that begins at position `low` of the axis along which panels lie, where some panel sees something.
// Windows never begin or end before those of earlier rows, so the panels that see a column follow one another.
template <typename C>
Segment segment_at(const Lanes<C>& lanes, int low) {
  const int axis = lanes.split;
  Segment segment = {{0, 0}, {}, {}};
  for (int a = 0; a < 3; ++a) segment.box[a] = lanes.box[0][a], segment.common[a] = {INT_MIN, INT_MAX};
  segment.box[axis] = {low, INT_MAX};
  int& high = segment.box[axis].high;
  for (int panel = C::PANELS - 1; panel >= 0; --panel) {
    const Span own = lanes.box[panel][axis];
    if (own.low > low) high = na::minimum(high, own.low);
    if (own.low > low || own.high <= low) continue;
    high = na::minimum(high, own.high);
    segment.on = {panel * C::PANEL, segment.on.count + C::PANEL};
    for (int a = 0; a < 3; ++a) segment.common[a] = both(segment.common[a], lanes.common[panel][a]);
  }
  return segment;
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

  // The columns of the patch
  void patch(const Columns<C>& columns) {
    const int end = lanes_.box[C::PANELS - 1][lanes_.split].high;
    for (int low = lanes_.box[0][lanes_.split].low; low < end;) {
      const Segment segment = segment_at(lanes_, low);
      if (segment.on.count) take(segment, columns);
      low = segment.box[lanes_.split].high;
    }
  }

  // Along x a block's worth at a time, so that what the lanes see along x is found once for all z and y
  void take(const Segment& segment, const Columns<C>& columns) {
    const Span *box = segment.box, *common = segment.common;
    expect(box_columns(box));
    block_.on = segment.on;
    for (int x = box[2].low; x < box[2].high; x += kBlock) {
      const Span part = {x, na::minimum(x + kBlock, box[2].high)};
      find_x_masks(part);
      for (int z = box[0].low; z < box[0].high; ++z) {
        for (int y = box[1].low; y < box[1].high; ++y) {
          const bool whole = holds(common[0], z) && holds(common[1], y);
          find_row_masks(z, y, whole);
          line(columns, z, y, part, whole ? common[2] : Span{0, 0});
        }
      }
    }
    flush();
  }

 private:
  void flush() {
    if (block_.count) body_.take(block_);
    block_.clear();
  }

  // Makes the blocks of the `total` columns to come equal in size
  void expect(int64_t total) {
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    block_.clear();
    block_.capacity = blocks ? int((total + blocks - 1) / blocks) : kBlock;
  }

  static bool holds(Span span, int x) { return span.low <= x && x < span.high; }

  // The first column of a line whose mask differs: the first unmasked one if `masked`, else the first masked one
  static int skip(const Side<T>& mask, int z, int y, Span line, bool masked) {
    int x = line.low;
    while (x < line.high && (*mask.at(z, y, x) == 0) == masked) ++x;
    return x;
  }

  // whole: columns that all lanes see
  void line(const Columns<C>& columns, int z, int y, Span part, Span whole) {
    for (int x = part.low; x < part.high;) {
      int run = na::minimum(part.high - x, block_.capacity - block_.count);
      if (columns.mask.base) {
        x = skip(columns.mask, z, y, {x, part.high}, true);
        run = skip(columns.mask, z, y, {x, na::minimum(x + run, part.high)}, false) - x;
        if (run == 0) break;
      }
      read(columns, z, y, x, run);
      mark(x - part.low, run, holds(whole, x) && holds(whole, x + run - 1));
      block_.count += run;
      x += run;
      if (block_.count == block_.capacity) flush();
    }
  }

  void read(const Columns<C>& columns, int z, int y, int x, int run) {
    const int at = block_.count;
    rows(columns.a, z, y, x, run, block_.a + at);
    rows(columns.b, z, y, x, run, block_.b + at);
    rows(columns.stats, z, y, x, run, block_.stats + at);
    indices(columns.rpb, z, y, x, run, block_.rpb + at);
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
    const int64_t step = int64_t(side.step[2]) * side.size;
    if (side.copies) {
      for (int i = 0; i < run; ++i, from += step) out[i] = side.copy(from, block_.count + i);
    } else {
      for (int i = 0; i < run; ++i, from += step) out[i] = reinterpret_cast<const T*>(from);
    }
  }

  // The coordinates that see position x of an axis, searched from those of a lower position on
  Span seeing(int axis, int x, Span lower) const {
    const Span* seen = lanes_.seen[axis];
    while (seen[lower.low].high <= x) ++lower.low;
    while (seen[lower.high].low <= x) ++lower.high;
    return lower;
  }

  // Bit l: lane l of a vector has one of these coordinates
  uint32_t lanes_at(int axis, Span coordinates, int v) const {
    const auto before = lanes_.grid->before[axis];
    return before[coordinates.high][v] & ~before[coordinates.low][v];
  }

  void find_x_masks(Span part) {
    Span coordinates = {0, 0};
    for (int x = part.low; x < part.high; ++x) {
      coordinates = seeing(2, x, coordinates);
      for (int v = block_.on.first; v < block_.on.end(); ++v) {
        x_sight_[(x - part.low) * C::V + v] = lanes_at(2, coordinates, v);
      }
    }
  }

  // whole: all lanes see the line
  void find_row_masks(int z, int y, bool whole) {
    const Span along_z = seeing(0, z, {0, 0}), along_y = seeing(1, y, {0, 0});
    for (int v = block_.on.first; v < block_.on.end(); ++v) {
      row_sight_[v] = whole ? ~0u : lanes_at(0, along_z, v) & lanes_at(1, along_y, v);
    }
  }

  // Whether any lane of a group sees the line
  bool group_sees_row(int group) const {
    constexpr int W = C::W, L = kLaneGroup;
    uint32_t bits = 0;
    for (int lane = group * L; lane < (group + 1) * L; lane += W) bits |= row_sight_[lane / W] >> lane % W;
    return bits & ((1u << smaller(L, W)) - 1);
  }

  // at: the first column's index in the x masks
  void mark(int at, int run, bool whole) {
    constexpr int V = C::V;
    block_.masked = block_.masked || !whole;
    for (int g = block_.on.first * C::W / kLaneGroup; g < block_.on.end() * C::W / kLaneGroup; ++g) {
      if (!group_sees_row(g)) continue;
      Range& range = block_.ranges[g];
      range = {na::minimum(range.low, block_.count), block_.count + run};
    }
    for (int v = block_.on.first; v < block_.on.end(); ++v) {
      const uint32_t* from = x_sight_ + at * V + v;
      uint32_t* to = block_.sight + block_.count * V + v;
      for (int i = 0; i < run; ++i) to[i * V] = whole ? ~0u : from[i * V] & row_sight_[v];
    }
  }

  const Lanes<C>& lanes_;
  Block<C>& block_;
  Body& body_;
  uint32_t row_sight_[C::V], x_sight_[kBlock * C::V];
};

}  // namespace NATTEN_ISA
}  // namespace natten
