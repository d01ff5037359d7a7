// The columns that a patch reads: a walk over its box, in blocks of up to 64, each with its lanes' mask.
//
//   for each segment of the patch, the columns that the same panels see (the picture is in geometry.h):
//     for z, y in the segment:  for x in it, a run of columns at a time:
//       append the run and its masks
//       when the block is full: find its rows (read in place, or converted into scratch memory), scalars and pair
//       indices, and call body.take(block)
//
// Runs and masks are the same for all heads of a patch, and are kept from the first to the last.
// Blocks of a segment have the same size, up to the length of a run. A block belongs to the vectors `on`, those of the
// panels that see the segment, and is `masked` unless all of their lanes see all of it.
#pragma once

#include "sides.h"

namespace natten {
namespace NATTEN_ISA {

// Columns side by side along x
struct Run {
  int z, y, x, count;
};

// Which columns a block has, and which lanes see them
template <typename C>
struct Marks {
  static constexpr int V = C::V, GROUPS = C::N / kLaneGroup;
  int count = 0, first_run = 0, runs = 0;
  bool masked = false;
  Vectors on = {0, V};         // the vectors that see the block
  Range ranges[GROUPS];        // for each group of lanes, the columns from the first to the last that it sees
  uint32_t sight[kBlock * V];  // bit l: lane l of the vector sees the column

  void clear(int run) {
    count = runs = 0, first_run = run;
    masked = false;
    for (Range& range : ranges) range = {kBlock, 0};
  }
};

// The blocks of a patch, which its heads have in common: they are found for the first one and kept if they are few
template <typename C>
struct PatchMarks {
  static constexpr int kBlocks = 16, kRuns = 256;  // kept; a block has up to kBlock runs
  bool kept = false;
  int blocks = 0;
  Marks<C> block[kBlocks + 1];
  Run runs[kRuns + kBlock];

  // For another patch
  void clear() { kept = false; }
};

// A block with the rows that it reads
template <typename C>
struct Block {
  typedef typename C::T T;
  static constexpr int V = C::V;
  int count;
  Vectors on;
  bool masked;
  const Range* ranges;
  const uint32_t* sight;
  const T* a[kBlock];
  const T* b[kBlock];
  const T* stats[kBlock];
  char* slots[kBlock];
  int64_t rpb[kBlock], slot[kBlock];  // the columns' parts of the pair indices

  explicit Block(const Marks<C>& marks)
      : count(marks.count), on(marks.on), masked(marks.masked), ranges(marks.ranges), sight(marks.sight) {}

  Mask<T> mask(int i, int v) const { return lanes_of<T>(sight[i * V + v]); }
  bool sees(int i, int v, int lane) const { return sight[i * V + v] >> lane & 1; }
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
  static constexpr int V = C::V, GROUPS = Marks<C>::GROUPS;
  ColumnWalk(const Lanes<C>& lanes, PatchMarks<C>& marks, Body& body) : lanes_(lanes), marks_(marks), body_(body) {}

  // The columns of the patch
  void patch(const Columns<C>& columns) {
    if (marks_.kept) {
      for (int block = 0; block < marks_.blocks; ++block) take_block(columns, marks_.block[block]);
      return;
    }
    find_groups();
    begin(0);
    spilled_ = false;
    const int end = lanes_.box[C::PANELS - 1][lanes_.split].high;
    for (int low = lanes_.box[0][lanes_.split].low; low < end;) {
      const Segment segment = segment_at(lanes_, low);
      if (segment.on.count) take(segment, columns);
      low = segment.box[lanes_.split].high;
    }
    marks_.blocks = at_, marks_.kept = !spilled_;
  }

  // Other columns, which all lanes see
  void others(const Segment& segment, const Columns<C>& columns) {
    begin(PatchMarks<C>::kBlocks);
    take(segment, columns);
  }

 private:
  // Marks from block `at` on; the last block and its runs are never kept
  void begin(int at) { at_ = at, runs_ = at < PatchMarks<C>::kBlocks ? 0 : PatchMarks<C>::kRuns; }

  // Along x a block's worth at a time, so that what the lanes see along x is found once for all z and y
  void take(const Segment& segment, const Columns<C>& columns) {
    const Span *box = segment.box, *common = segment.common;
    expect(box_columns(box));
    on_ = segment.on;
    start();
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
    flush(columns);
  }

  Marks<C>& block() { return marks_.block[at_]; }

  void start() {
    block().clear(runs_);
    block().on = on_;
  }

  void flush(const Columns<C>& columns) {
    if (block().count == 0) return;
    take_block(columns, block());
    // what does not fit is found again for every head
    const bool fits = at_ < PatchMarks<C>::kBlocks && runs_ <= PatchMarks<C>::kRuns;
    if (fits) {
      ++at_;
    } else {
      begin(PatchMarks<C>::kBlocks);
      spilled_ = true;
    }
    start();
  }

  void take_block(const Columns<C>& columns, const Marks<C>& marks) {
    Block<C> block(marks);
    int at = 0;
    for (const Run* run = marks_.runs + marks.first_run; at < marks.count; at += run++->count) {
      read(columns, *run, at, block);
    }
    body_.take(block);
  }

  // What the lanes of each group see along each axis; more where some of them do not exist
  void find_groups() {
    for (int a = 0; a < 3; ++a) {
      for (int g = 0; g < GROUPS; ++g) {
        const Span* const seen = lanes_.seen[a];
        const uint8_t* const lane = lanes_.grid->coordinate[a] + g * kLaneGroup;
        low_[a][g] = seen[lane[0]].low, high_[a][g] = seen[lane[kLaneGroup - 1]].high;
      }
    }
  }

  // Makes the blocks of the `total` columns to come equal in size
  void expect(int64_t total) {
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    capacity_ = blocks ? int((total + blocks - 1) / blocks) : kBlock;
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
      int run = na::minimum(part.high - x, capacity_ - block().count);
      if (columns.mask.base) {
        x = skip(columns.mask, z, y, {x, part.high}, true);
        run = skip(columns.mask, z, y, {x, na::minimum(x + run, part.high)}, false) - x;
        if (run == 0) break;
      }
      const bool all = holds(whole, x) && holds(whole, x + run - 1);
      mark_groups(z, y, {x, x + run}, all);
      mark(x - part.low, run, all);
      marks_.runs[runs_++] = {z, y, x, run};
      block().count += run;
      x += run;
      if (block().count == capacity_) flush(columns);
    }
  }

  void read(const Columns<C>& columns, const Run& run, int at, Block<C>& block) const {
    rows(columns.a, run, at, block.a);
    rows(columns.b, run, at, block.b);
    rows(columns.stats, run, at, block.stats);
    indices(columns.rpb, run, block.rpb + at);
    indices(columns.slot, run, block.slot + at);
    if (!columns.slots.base) return;
    for (int i = 0; i < run.count; ++i) block.slots[at + i] = columns.slots.at(run.z, run.y, run.x + i);
  }

  void indices(const PairIndex<C>* index, const Run& run, int64_t* out) const {
    if (!index) return;
    const int64_t line = index->column(0, run.z) + index->column(1, run.y);
    for (int i = 0; i < run.count; ++i) out[i] = line + index->column(2, run.x + i);
  }

  void rows(const Side<T>& side, const Run& run, int at, const T** out) const {
    if (!side.base) return;
    const char* from = side.at(run.z, run.y, run.x);
    const int64_t step = int64_t(side.step[2]) * side.size;
    for (int i = na::maximum(side.fresh - run.x, 0); i < run.count; ++i) {
      prefetch_row(from + i * step + side.ahead, side.width * side.size);
    }
    if (side.copies) {
      for (int i = at; i < at + run.count; ++i, from += step) out[i] = side.copy(from, i);
    } else {
      for (int i = at; i < at + run.count; ++i, from += step) out[i] = reinterpret_cast<const T*>(from);
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
      for (int v = 0; v < V; ++v) {
        x_sight_[(x - part.low) * V + v] = lanes_at(2, coordinates, v);
      }
    }
  }

  // whole: all lanes see the line
  void find_row_masks(int z, int y, bool whole) {
    const Span along_z = seeing(0, z, {0, 0}), along_y = seeing(1, y, {0, 0});
    for (int v = 0; v < V; ++v) {
      row_sight_[v] = whole ? ~0u : lanes_at(0, along_z, v) & lanes_at(1, along_y, v);
    }
  }

  // Extends the groups' ranges by what they see of a line's columns
  void mark_groups(int z, int y, Span x, bool whole) {
    const int offset = block().count - x.low;
    if (whole) {
      for (Range& range : block().ranges) range = {na::minimum(range.low, x.low + offset), x.high + offset};
      return;
    }
    for (int g = 0; g < GROUPS; ++g) {
      const int low = na::maximum(x.low, low_[2][g]), high = na::minimum(x.high, high_[2][g]);
      const bool sees = (low < high) & (low_[0][g] <= z) & (z < high_[0][g]) & (low_[1][g] <= y) & (y < high_[1][g]);
      Range& range = block().ranges[g];
      range.low = sees ? na::minimum(range.low, low + offset) : range.low;
      range.high = sees ? high + offset : range.high;
    }
  }

  // at: the first column's index in the x masks
  void mark(int at, int run, bool whole) {
    Marks<C>& marks = block();
    marks.masked = marks.masked || !whole;
    const uint32_t* from = x_sight_ + at * V;
    uint32_t* to = marks.sight + marks.count * V;
    for (int i = 0; i < run; ++i, from += V, to += V) {
      for (int v = 0; v < V; ++v) to[v] = whole ? ~0u : from[v] & row_sight_[v];
    }
  }

  const Lanes<C>& lanes_;
  PatchMarks<C>& marks_;
  Body& body_;
  int at_ = 0, runs_ = 0, capacity_ = kBlock;
  bool spilled_ = false;  // a block of the patch was not kept
  Vectors on_ = {0, V};
  uint32_t row_sight_[V], x_sight_[kBlock * V];
  int low_[3][GROUPS], high_[3][GROUPS];
};

}  // namespace NATTEN_ISA
}  // namespace natten
