// The problem on three axes, its tensors, and the walk: who computes what.
//
// Every rank is computed on three axes; missing leading axes have length 1. A walk goes over ROWS (queries; keys where
// transposed) and reads COLUMNS (the keys of their windows; the queries that see them). A patch is N rows of one
// dilation group of one head, one per vector lane, in one panel or in several side by side. A panel sees a box of
// columns:
//
//        two panels, r and s, of 4 x 4 = 16 lanes, window 5 x 5
//        +-----------------+
//        | a a a a a a a a |     a  columns that only panel r sees      .  that both see: loaded once for both
//        | a a a a a a a a |     b  columns that only panel s sees
//        | a a r r r r a a |
//        | a a r r r r a a |     A panel has the shape that reads the fewest columns, of all shapes with as many lanes;
//        | . . r r r r . . |     panels lie along the axis on which they share the most.
//        | . . r r r r . . |
//        | . . s s s s . . |     A unit of work is (batch, dilation group, patch, head), head fastest. Each output
//        | . . s s s s . . |     row belongs to one unit, and a unit sums in a fixed order: results do not depend on
//        | b b s s s s b b |     the number of threads.
//        | b b s s s s b b |
//        | b b b b b b b b |
//        | b b b b b b b b |
//        +-----------------+
//
// Sources: NATTEN (arXiv 2204.07143, 2504.16922) for the windows, kernels/window.h; FlashAttention (arXiv 2205.14135).
#pragma once

#include "load.h"

namespace natten {
namespace NATTEN_ISA {

// Included inside the namespace on purpose: kernels.cpp is compiled once per instruction set, and a function of
// window.h with one name in all of these objects could be linked from one that uses instructions this machine lacks.
// window.h itself includes nothing.
#include "../kernels/window.h"

using na::Span;

// A tensor's strides on three axes, in elements
struct Tensor {
  char* data = nullptr;
  int dtype = 0;
  int64_t batch = 0, head = 0, channel = 0;
  int64_t axis[3] = {0, 0, 0};

  char* at(int64_t element) const { return data + element * element_size(dtype); }
};

struct Problem {
  int dtype, rank, batch, heads, kv_heads, group_heads, dim, dim_v, additional, threads;
  int full_shape[3], query_shape[3], query_start[3], key_shape[3], key_start[3], w[3], s[3], d[3];
  bool causal[3];
  double scale;
};

inline int64_t product(const int* sizes) { return int64_t(sizes[0]) * sizes[1] * sizes[2]; }

// A scale in two factors: a sign, by which the patch's rows are multiplied exactly, and a positive size, which keeps
// the order of the dot products
template <typename T>
struct Scale {
  T sign, size;

  explicit Scale(double scale) {
    const T rounded = T(scale);
    sign = rounded == 0 ? T(0) : (rounded < 0 ? T(-1) : T(1));
    size = rounded == 0 ? T(1) : (rounded < 0 ? -rounded : rounded);
  }
};

inline Problem pad_problem(const natten_problem& given) {
  Problem p = {};
  p.dtype = given.dtype, p.rank = int(given.rank), p.batch = int(given.batch);
  p.heads = int(given.heads), p.kv_heads = int(given.kv_heads), p.group_heads = p.heads / p.kv_heads;
  p.dim = int(given.head_dim), p.dim_v = int(given.head_dim_v), p.additional = int(given.additional);
  p.threads = given.threads, p.scale = given.scale;
  for (int a = 0; a < 3; ++a) {
    const int from = a - (3 - p.rank);
    const bool has = from >= 0;
    p.full_shape[a] = has ? int(given.full_shape[from]) : 1;
    p.query_shape[a] = has ? int(given.query_shape[from]) : 1;
    p.query_start[a] = has ? int(given.query_start[from]) : 0;
    p.key_shape[a] = has ? int(given.key_shape[from]) : 1;
    p.key_start[a] = has ? int(given.key_start[from]) : 0;
    p.w[a] = has ? int(given.kernel_size[from]) : 1;
    p.s[a] = has ? int(given.stride[from]) : 1;
    p.d[a] = has ? int(given.dilation[from]) : 1;
    p.causal[a] = has && given.is_causal[from] != 0;
  }
  return p;
}

inline Tensor pad_tensor(const natten_tensor& given, int rank, int dtype) {
  Tensor t;
  t.dtype = dtype;
  t.data = static_cast<char*>(given.data);
  t.batch = given.stride[0], t.head = given.stride[4], t.channel = given.stride[5];
  for (int a = 0; a < rank; ++a) t.axis[3 - rank + a] = given.stride[1 + a];
  return t;
}

// [B, *shape, H, C], contiguous
inline Tensor contiguous_tensor(void* data, int dtype, const int* shape, int64_t heads, int64_t channels) {
  Tensor t;
  t.data = static_cast<char*>(data), t.dtype = dtype;
  t.channel = 1, t.head = channels;
  t.axis[2] = heads * channels, t.axis[1] = t.axis[2] * shape[2], t.axis[0] = t.axis[1] * shape[1];
  t.batch = t.axis[0] * shape[0];
  return t;
}

// One axis of a walk, in tokens: how many rows and columns are at hand, and where they start, out of `full`; panel,
// patch: the rows of one along the axis; patches: how many the longest dilation group has
struct Axis {
  int rows, columns, row_start, column_start, full, w, s, d;
  bool causal;
  int panel, patch, patches;

  // Dilation groups that have rows at hand
  int groups() const { return na::minimum(d, rows); }
};

// The positions of a dilation group among the tokens from `start` on
NATTEN_INLINE Span at_hand(int start, int length, int group, int d) {
  return {start == 0 ? 0 : na::group_length(start, group, d), na::group_length(start + length, group, d)};
}

// The columns, out of n, that the row at position p of a dilation group sees
NATTEN_INLINE Span interval(int p, const Axis& axis, int n, bool transposed) {
  Span span = transposed ? na::inverse(p, n, axis.w, axis.s, axis.causal)
                         : na::window(p, n, axis.w, axis.s, axis.causal);
  span.high = na::minimum(span.high, n);
  return span;
}

// The part of a span that lies within another one
NATTEN_INLINE Span cut(Span span, Span to) {
  return {na::minimum(na::maximum(span.low, to.low), to.high), na::maximum(na::minimum(span.high, to.high), to.low)};
}

// The lanes of a patch: where they lie in it
struct Grid {
  static constexpr int kLanes = 64, kVectors = 4;  // at most
  uint8_t coordinate[3][kLanes];
  uint32_t before[3][kLanes + 1][kVectors];  // bit l: lane l of a vector has a lower coordinate
};

// Panels of panel[0] x panel[1] x panel[2] lanes, along the axis `split`
template <typename C>
Grid make_grid(const int* panel, int split) {
  static_assert(C::N <= Grid::kLanes && C::V <= Grid::kVectors, "patch too large");
  Grid grid = {};
  for (int lane = 0; lane < C::N; ++lane) {
    int rest = lane % C::PANEL_LANES;
    for (int a = 2; a >= 0; --a) {
      const int c = (a == split ? lane / C::PANEL_LANES * panel[a] : 0) + rest % panel[a];
      const int end = panel[a] * (a == split ? C::PANELS : 1);
      grid.coordinate[a][lane] = uint8_t(c);
      for (int higher = c + 1; higher <= end; ++higher) {
        grid.before[a][higher][lane / C::W] |= uint32_t(1) << lane % C::W;
      }
      rest /= panel[a];
    }
  }
  return grid;
}

struct Walk {
  Axis axis[3];
  bool transposed;
  int batch, heads, group_heads;  // group_heads: query heads of a key/value head
  int split;                   // the axis along which the panels of a patch lie
  int64_t groups, patches;     // per batch item and head
  Grid grid;

  int64_t units() const { return batch * groups * patches * heads; }
};

// Panels of `rows` rows in the longest dilation group at hand
inline int panels(const Axis& axis, int rows) { return (na::group_length(axis.rows, 0, axis.d) + rows - 1) / rows; }

// Columns that `rows` rows side by side see along one axis, from a multiple of `rows` on
inline int64_t columns_seen(const Axis& axis, int rows) {
  const int m = na::group_length(axis.columns, 0, axis.d), s = axis.s;
  int more = rows - 1;
  if (s > 1) more = s % rows == 0 ? 0 : (rows % s == 0 ? rows - s : (rows - 1 + s - 1) / s * s);
  const int64_t span = na::minimum(axis.w, m) + int64_t(more);
  return span < m ? span : m;
}

// Columns that all panels of `rows` rows read along one axis
inline int64_t columns_read(const Axis& axis, int rows) { return panels(axis, rows) * columns_seen(axis, rows); }

// The columns of a panel between the first and the last that one of the first kLaneGroup rows sees
inline int64_t group_range(const Walk& walk, const int* panel) {
  int rest = kLaneGroup;
  int64_t range = 0, line = 1;
  for (int a = 2; a >= 0; --a) {
    const int rows = smaller(rest, panel[a]);
    rest /= rows;
    range += (columns_seen(walk.axis[a], rows) - 1) * line;
    line *= columns_seen(walk.axis[a], panel[a]);
  }
  return range + 1;
}

// Chooses the panel of `lanes` rows (a power of two) that reads the fewest columns; among equals the one whose groups
// have the shortest ranges, then the longest along x
inline void choose_panel(Walk& walk, int lanes) {
  int64_t best = -1, shortest = 0;
  for (int z = 1; z <= lanes; z *= 2) {
    for (int y = 1; y * z <= lanes; y *= 2) {
      const int shape[3] = {z, y, lanes / (y * z)};
      int64_t columns = 1;
      for (int a = 0; a < 3; ++a) columns *= columns_read(walk.axis[a], shape[a]);
      const int64_t range = group_range(walk, shape);
      if (best >= 0 && (columns > best || (columns == best && range >= shortest))) continue;
      best = columns, shortest = range;
      for (int a = 0; a < 3; ++a) walk.axis[a].panel = shape[a];
    }
  }
}

// The share of the columns that panels read which two panels side by side along an axis have in common
inline double shared_part(const Axis& axis) {
  const int all = panels(axis, axis.panel);
  const double own = double(columns_seen(axis, axis.panel));
  const double both = 2 * own - double(columns_seen(axis, 2 * axis.panel));
  return both > 0 ? (all - all % 2) * both / (all * own) : 0;
}

// The axis along which panels share the most. x only if it is strictly better, because columns come in runs along x.
inline int choose_split(const Walk& walk) {
  double shared[3];
  for (int a = 0; a < 3; ++a) shared[a] = shared_part(walk.axis[a]);
  const int best = shared[0] > shared[1] ? 0 : 1;
  return shared[best] > 0 && shared[best] >= shared[2] ? best : 2;
}

inline void set_axes(Walk& walk, const Problem& p, bool transposed) {
  for (int a = 0; a < 3; ++a) {
    const int queries = p.query_shape[a], query_start = p.query_start[a];
    const int keys = p.key_shape[a], key_start = p.key_start[a];
    walk.axis[a] = {transposed ? keys : queries, transposed ? queries : keys,
                    transposed ? key_start : query_start, transposed ? query_start : key_start,
                    p.full_shape[a], p.w[a], p.s[a], p.d[a], p.causal[a], 1, 1, 1};
  }
}

// The same for panels of queries along the axis where they share the most; 0 if there are too few of them for a patch
template <typename C>
double shared_part(const Problem& p) {
  Walk walk;
  set_axes(walk, p, false);
  choose_panel(walk, C::PANEL_LANES);
  const Axis& axis = walk.axis[choose_split(walk)];
  return panels(axis, axis.panel) < C::PANELS ? 0 : shared_part(axis);
}

template <typename C>
Walk plan_walk(const Problem& p, bool transposed) {
  Walk walk;
  walk.transposed = transposed, walk.batch = p.batch, walk.heads = transposed ? p.kv_heads : p.heads;
  walk.group_heads = p.group_heads;
  set_axes(walk, p, transposed);
  choose_panel(walk, C::PANEL_LANES);
  walk.split = choose_split(walk);
  walk.groups = walk.patches = 1;
  for (int a = 0; a < 3; ++a) {
    Axis& axis = walk.axis[a];
    axis.patch = axis.panel * (a == walk.split ? C::PANELS : 1);
    axis.patches = panels(axis, axis.patch);
    walk.groups *= axis.groups();
    walk.patches *= axis.patches;
  }
  const int panel[3] = {walk.axis[0].panel, walk.axis[1].panel, walk.axis[2].panel};
  walk.grid = make_grid<C>(panel, walk.split);
  return walk;
}

// A unit of work. corner: the positions at which its patch begins; end: where the rows at hand of its dilation group
// end; inside: whether the corner lies before that end (groups differ in length)
struct Unit {
  int batch, head;
  int group[3], corner[3], end[3];
  bool inside;
};

// Patch `number` of a head, counted over all batch items and dilation groups
inline Unit find_unit(const Walk& walk, int64_t number, int head) {
  Unit unit;
  unit.head = head;
  int64_t patch = number % walk.patches;
  number /= walk.patches;
  int64_t group = number % walk.groups;
  unit.batch = int(number / walk.groups);
  unit.inside = true;
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = walk.axis[a];
    unit.group[a] = int((axis.row_start + group % axis.groups()) % axis.d);
    group /= axis.groups();
    const Span rows = at_hand(axis.row_start, axis.rows, unit.group[a], axis.d);
    unit.corner[a] = rows.low + int(patch % axis.patches) * axis.patch, unit.end[a] = rows.high;
    patch /= axis.patches;
    unit.inside = unit.inside && unit.corner[a] < unit.end[a];
  }
  return unit;
}

}  // namespace NATTEN_ISA
}  // namespace natten
