// The rows of one patch, one per vector lane: where they lie, what they see, and how they are read and written.
#pragma once

#include <limits.h>

#include "geometry.h"
#include "micro.h"

namespace natten {
namespace NATTEN_ISA {

template <typename C>
struct Lanes {
  typedef typename C::T T;
  static constexpr int W = C::W, V = C::V, N = C::N, PANELS = C::PANELS;

  const Grid* grid;
  Span seen[3][N + 1];            // columns that the rows of a coordinate see; coordinates past the rows see nothing
  int row[3][N];                  // position inside the dilation group
  bool live[N];                   // the row exists; a dead lane repeats the last row and stores nothing
  int split;                      // the axis along which panels lie
  Span box[PANELS][3];            // columns that any row of the panel sees
  Span common[PANELS][3];         // columns that every lane of the panel sees
  int step[3];                    // token at hand = position * step + origin: of rows, of columns
  int row_origin[3], column_origin[3];
  // What is read ahead for the unit of work that comes next: another head of the patch, or the patch further along x
  int head, next_head;  // of the walk: the same or a lower one is the next patch's
  int group;            // heads of the columns' tensors for one of the walk's, if transposed; else the reverse
  bool transposed;
  int stride, fresh;    // tokens to the next patch, 0 if there is none; columns from here on are new to it

  // Limits what the rows of the first `count` coordinates see to the columns at hand. Not inlined: few walks need it.
  __attribute__((noinline)) void keep_at_hand(int a, const Axis& axis, int count) {
    const Span there = at_hand(axis.column_start, axis.columns, column_origin[a] + axis.column_start, axis.d);
    for (int c = 0; c < count; ++c) seen[a][c] = cut(seen[a][c], there);
  }

  // Rows of a patch
  void find(const Walk& walk, const Unit& unit) {
    grid = &walk.grid, split = walk.split, transposed = walk.transposed, group = walk.group_heads;
    const int64_t to_next = int64_t(walk.axis[2].patch) * walk.axis[2].d;
    stride = to_next < walk.axis[2].rows ? int(to_next) : 0;
    for (int lane = 0; lane < N; ++lane) live[lane] = true;
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = walk.axis[a];
      const int group = unit.group[a], n = na::group_length(axis.full, group, axis.d);
      const int count = na::minimum(axis.patch, unit.end[a] - unit.corner[a]);
      step[a] = axis.d, row_origin[a] = group - axis.row_start, column_origin[a] = group - axis.column_start;
      for (int c = 0; c < count; ++c) seen[a][c] = interval(unit.corner[a] + c, axis, n, walk.transposed);
      if (axis.columns < axis.full) keep_at_hand(a, axis, count);
      for (int c = count; c <= axis.patch; ++c) seen[a][c] = {INT_MAX, INT_MAX};
      for (int panel = 0; panel < PANELS; ++panel) {
        const int first = a == split ? panel * axis.panel : 0, last = first + axis.panel - 1;
        const int end = seen[a][na::minimum(last, count - 1)].high;
        box[panel][a] = {first < count ? seen[a][first].low : end, end};
        common[panel][a] = last < count ? Span{seen[a][last].low, seen[a][first].high} : Span{0, 0};
      }
      for (int lane = 0; lane < N; ++lane) {
        const int c = grid->coordinate[a][lane];
        row[a][lane] = unit.corner[a] + na::minimum(c, count - 1);
        live[lane] = live[lane] && c < count;
      }
    }
    fresh = box[PANELS - 1][2].high - walk.axis[2].patch;
  }

  // Rows from `first` on, of `count` tokens side by side (additional keys), which see `all` columns, of whole axes
  void find_tokens(const Grid& tokens, int first, int count, const Span* all) {
    grid = &tokens, split = 2;
    head = 0, next_head = 1, group = 1, transposed = false, stride = 0, fresh = INT_MAX;
    for (int a = 0; a < 3; ++a) {
      for (int c = 0; c <= N; ++c) seen[a][c] = c < (a == split ? N : 1) ? all[a] : Span{INT_MAX, INT_MAX};
      for (int panel = 0; panel < PANELS; ++panel) {
        const bool dead = a == split && first + panel * C::PANEL_LANES >= count;
        box[panel][a] = dead ? Span{all[a].high, all[a].high} : all[a];
        common[panel][a] = dead ? Span{0, 0} : all[a];
      }
      step[a] = 1, row_origin[a] = column_origin[a] = 0;
      for (int lane = 0; lane < N; ++lane) row[a][lane] = 0;
    }
    for (int lane = 0; lane < N; ++lane) {
      live[lane] = first + lane < count;
      row[2][lane] = na::minimum(first + lane, count - 1);
    }
  }

  // Columns that a lane sees along an axis
  Span columns_of(int axis, int lane) const {
    return live[lane] ? seen[axis][grid->coordinate[axis][lane]] : Span{0, 0};
  }

  // Bytes from what is read of one head of a tensor to what is read next; 0 if that is nothing new. Only prefetched: at
  // the end of a dilation group's axis it is wrong.
  int64_t ahead(const Tensor& tensor, int from, int to) const {
    if (to > from) return (to - from) * tensor.head * element_size(tensor.dtype);
    if (next_head > head || stride == 0) return 0;
    return (stride * tensor.axis[2] - (from - to) * tensor.head) * element_size(tensor.dtype);
  }

  // The head of the columns' tensors that is read after this one: heads of the rows share those of a key/value head,
  // keys as rows have several heads of columns each
  int next_columns(int from) const {
    if (!transposed) return next_head / group;
    return from + 1 < (head + 1) * group ? from + 1 : next_head * group;
  }

  // Element offset of each lane's row
  void offsets(const Tensor& tensor, int batch, int of_head, int64_t* out) const {
    const int64_t base = batch * tensor.batch + of_head * tensor.head;
    for (int lane = 0; lane < N; ++lane) out[lane] = base;
    for (int a = 0; a < 3; ++a) {
      if (tensor.axis[a] == 0) continue;
      for (int lane = 0; lane < N; ++lane) {
        out[lane] += (int64_t(row[a][lane]) * step[a] + row_origin[a]) * tensor.axis[a];
      }
    }
  }

  void addresses(const Tensor& tensor, int batch, int of_head, char** out) const {
    int64_t at[N];
    offsets(tensor, batch, of_head, at);
    for (int lane = 0; lane < N; ++lane) out[lane] = tensor.at(at[lane]);
  }

  // One number per lane
  void read_scalars(const Tensor& tensor, int batch, int of_head, Vector<T>* out) const {
    int64_t at[N];
    alignas(64) T values[N];
    offsets(tensor, batch, of_head, at);
    for (int lane = 0; lane < N; ++lane) values[lane] = reinterpret_cast<const T*>(tensor.data)[at[lane]];
    for (int v = 0; v < V; ++v) out[v] = load(values + v * W);
  }

  void write_scalars(const Tensor& tensor, int batch, int of_head, const T* values) const {
    int64_t at[N];
    offsets(tensor, batch, of_head, at);
    for (int lane = 0; lane < N; ++lane) {
      if (live[lane]) reinterpret_cast<T*>(tensor.data)[at[lane]] = values[lane];
    }
  }

  // out[d][lane] = factor * row[lane][d]; `rows` holds N rows of `width` rounded up to W
  void read(const Tensor& tensor, int batch, int of_head, int width, T factor, T* rows, Vector<T>* out) const {
    const int padded = (width + W - 1) / W * W, whole = width / W * W;
    const bool in_place = tensor.channel == 1 && element_size(tensor.dtype) == int(sizeof(T));
    const int64_t next = ahead(tensor, of_head, next_head);
    int64_t at[N];
    const T* from[N];
    offsets(tensor, batch, of_head, at);
    for (int lane = 0; lane < N; ++lane) {
      T* copy = rows + int64_t(lane) * padded;
      const char* row_at = tensor.at(at[lane]);
      prefetch_row(row_at + next, width * element_size(tensor.dtype));
      from[lane] = in_place ? reinterpret_cast<const T*>(row_at) : copy;
      const int done = in_place ? whole : 0;  // a row that is read in place ends with a copy of its last channels
      if (done < width) {
        const char* rest = row_at + done * tensor.channel * element_size(tensor.dtype);
        read_row(tensor.dtype, rest, tensor.channel, width - done, copy + done);
        for (int d = width; d < padded; ++d) copy[d] = T(0);
      }
    }
    for (int v = 0; v < V; ++v) {
      for (int d = 0; d < padded; d += W) {
        Vector<T> block[W];
        for (int i = 0; i < W; ++i) {
          const int lane = v * W + i;
          block[i] = load(d < whole ? from[lane] + d : rows + int64_t(lane) * padded + d) * factor;
        }
        transpose<T>(block);
        for (int i = 0; i < W; ++i) out[(d + i) * V + v] = block[i];
      }
    }
  }

  // row[lane] = factor[lane] * sums[lane], rounded once
  void write(const Tensor& tensor, int batch, int of_head, int width, const Vector<T>* factor, const T* sums) const {
    const int padded = (width + W - 1) / W * W;
    int64_t at[N];
    offsets(tensor, batch, of_head, at);
    for (int lane = 0; lane < N; ++lane) {
      if (live[lane]) {
        const T* const sum = sums + int64_t(lane) * padded;
        write_row(tensor.dtype, tensor.at(at[lane]), tensor.channel, width, factor[lane / W][lane % W], sum);
      }
    }
  }
};

}  // namespace NATTEN_ISA
}  // namespace natten
