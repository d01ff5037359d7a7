// The problem on three axes, its tensors, and the walk: who computes what.
//
// Every rank is computed on three axes; missing leading axes have length 1. A walk goes over ROWS (queries; keys where
// transposed) and reads COLUMNS (the keys of their windows; the queries that see them). A patch is N rows of one
// dilation group of one head, one per vector lane, and sees a box of columns:
//
//        box of the patch: every column that its rows see        patch 4 x 4 = 16 lanes, window 5 x 5
//        +-------------------------+
//        | . . . . . . . . . . . . |     A unit of work is (batch, dilation group, patch, head), head fastest. Each
//        | . . . r r r r . . . . . |     output row belongs to one unit, and a unit sums in a fixed order: results do
//        | . . . r r r r . . . . . |     not depend on the number of threads.
//        | . . . r r r r . . . . . |
//        | . . . r r r r . . . . . |     The patch's shape is the one of N rows that reads the fewest columns.
//        | . . . . . . . . . . . . |
//        +-------------------------+
//
// Sources: NATTEN (arXiv 2204.07143, 2504.16922) for the windows, kernels/window.h; FlashAttention (arXiv 2205.14135).
#pragma once

#include "load.h"

namespace natten {
namespace NATTEN_ISA {

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
  int query_shape[3], key_shape[3], w[3], s[3], d[3];
  bool causal[3];
  double scale;
};

inline int64_t product(const int* sizes) { return int64_t(sizes[0]) * sizes[1] * sizes[2]; }

inline Problem pad_problem(const natten_problem& given) {
  Problem p = {};
  p.dtype = given.dtype, p.rank = given.rank, p.batch = int(given.batch);
  p.heads = int(given.heads), p.kv_heads = int(given.kv_heads), p.group_heads = p.heads / p.kv_heads;
  p.dim = int(given.head_dim), p.dim_v = int(given.head_dim_v), p.additional = int(given.additional);
  p.threads = given.threads, p.scale = given.scale;
  for (int a = 0; a < 3; ++a) {
    const int from = a - (3 - p.rank);
    const bool has = from >= 0;
    p.query_shape[a] = has ? int(given.query_shape[from]) : 1;
    p.key_shape[a] = has ? int(given.key_shape[from]) : 1;
    p.w[a] = has ? int(given.kernel_size[from]) : 1;
    p.s[a] = has ? int(given.stride[from]) : 1;
    p.d[a] = has ? int(given.dilation[from]) : 1;
    p.causal[a] = has && given.is_causal[from] != 0;
  }
  return p;
}

inline Tensor pad_tensor(const natten_tensor* given, int rank, int dtype) {
  Tensor t;
  t.dtype = dtype;
  if (!given) return t;
  t.data = static_cast<char*>(given->data);
  t.batch = given->stride[0], t.head = given->stride[4], t.channel = given->stride[5];
  for (int a = 0; a < rank; ++a) t.axis[3 - rank + a] = given->stride[1 + a];
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

// One axis of a walk, in tokens; patch: rows of a patch along it, patches: of the longest dilation group
struct Axis {
  int rows, columns, w, s, d;
  bool causal;
  int patch, patches;
};

// The columns, out of n, that the row at position p of a dilation group sees
NATTEN_INLINE Span interval(int p, const Axis& axis, int n, bool transposed) {
  Span span = transposed ? na::inverse(p, n, axis.w, axis.s, axis.causal) : na::window(p, n, axis.w, axis.s, axis.causal);
  span.high = na::minimum(span.high, n);
  return span;
}

struct Walk {
  Axis axis[3];
  bool transposed;
  int batch, heads;
  int64_t groups, patches;     // per batch item and head
  int64_t run;                 // patches of one head after another
  uint8_t coordinate[3][64];   // of each lane, inside the patch

  int64_t units() const { return batch * groups * patches * heads; }
};

// Columns that the patches of `patch` rows read along one axis, all together
inline int64_t columns_read(const Axis& axis, int patch) {
  const int n = na::group_length(axis.rows, 0, axis.d), m = na::group_length(axis.columns, 0, axis.d), s = axis.s;
  int more = patch - 1;
  if (s > 1) more = s % patch == 0 ? 0 : (patch % s == 0 ? patch - s : (patch - 1 + s - 1) / s * s);
  const int64_t span = na::minimum(axis.w, m) + more;
  return (n + patch - 1) / patch * (span < m ? span : m);
}

// Chooses the patch of `lanes` rows (a power of two), longest along x among equals
inline void choose_patch(Walk& walk, int lanes) {
  int64_t best = -1;
  for (int z = 1; z <= lanes; z *= 2) {
    for (int y = 1; y * z <= lanes; y *= 2) {
      const int shape[3] = {z, y, lanes / (y * z)};
      int64_t columns = 1;
      for (int a = 0; a < 3; ++a) columns *= columns_read(walk.axis[a], shape[a]);
      if (best >= 0 && columns >= best) continue;
      best = columns;
      for (int a = 0; a < 3; ++a) walk.axis[a].patch = shape[a];
    }
  }
}

inline void set_axes(Walk& walk, const Problem& p, bool transposed) {
  for (int a = 0; a < 3; ++a) {
    const int rows = transposed ? p.key_shape[a] : p.query_shape[a];
    const int columns = transposed ? p.query_shape[a] : p.key_shape[a];
    walk.axis[a] = {rows, columns, p.w[a], p.s[a], p.d[a], p.causal[a], 1, 1};
  }
}

// (lane, column) pairs that a walk in patches of `lanes` rows visits, dilation groups and heads apart
inline double pairs_visited(const Problem& p, int lanes) {
  Walk walk;
  set_axes(walk, p, false);
  choose_patch(walk, lanes);
  double pairs = lanes;
  for (int a = 0; a < 3; ++a) pairs *= double(columns_read(walk.axis[a], walk.axis[a].patch));
  return pairs;
}

// Bytes of a run's columns: half of a small second-level cache
constexpr int64_t kRunBytes = 1 << 18;

inline Walk plan_walk(const Problem& p, bool transposed, int lanes) {
  Walk walk;
  walk.transposed = transposed, walk.batch = p.batch, walk.heads = transposed ? p.kv_heads : p.heads;
  set_axes(walk, p, transposed);
  choose_patch(walk, lanes);
  walk.groups = walk.patches = 1;
  for (int a = 0; a < 3; ++a) {
    Axis& axis = walk.axis[a];
    axis.patches = (na::group_length(axis.rows, 0, axis.d) + axis.patch - 1) / axis.patch;
    walk.groups *= axis.d;
    walk.patches *= axis.patches;
  }
  walk.run = kRunBytes / (int64_t(lanes) * (p.dim + p.dim_v) * 4) + 1;
  for (int lane = 0; lane < lanes; ++lane) {
    int rest = lane;
    for (int a = 2; a >= 0; --a) {
      walk.coordinate[a][lane] = uint8_t(rest % walk.axis[a].patch);
      rest /= walk.axis[a].patch;
    }
  }
  return walk;
}

// Where a unit of work lies; inside: its patch begins inside its dilation group (groups differ in length)
struct Place {
  int batch, head;
  int group[3], corner[3];
  bool inside;
};

// The patch `number` of a head, batch item and dilation group included
inline Place find_place(const Walk& walk, int64_t number, int head) {
  Place place;
  place.head = head;
  int64_t patch = number % walk.patches;
  number /= walk.patches;
  int64_t group = number % walk.groups;
  place.batch = int(number / walk.groups);
  place.inside = true;
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = walk.axis[a];
    place.group[a] = int(group % axis.d);
    group /= axis.d;
    place.corner[a] = int(patch % axis.patches) * axis.patch;
    patch /= axis.patches;
    place.inside = place.inside && place.corner[a] < na::group_length(axis.rows, place.group[a], axis.d);
  }
  return place;
}

inline Place find_unit(const Walk& walk, int64_t unit) {
  const int64_t all = walk.patches * walk.heads, outer = unit / all, inner = unit % all;
  const int64_t first = inner / (walk.run * walk.heads) * walk.run;  // of the run
  const int64_t left = walk.patches - first, length = left < walk.run ? left : walk.run;
  const int64_t rest = inner - first * walk.heads;
  return find_place(walk, outer * walk.patches + first + rest % length, int(rest / length));
}

}  // namespace NATTEN_ISA
}  // namespace natten
