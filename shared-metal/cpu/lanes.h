// The rows of one patch, one per vector lane: where they lie, what they see, and how they come in and go out.
#pragma once

#include "geometry.h"
#include "micro.h"

namespace natten {
namespace NATTEN_ISA {

template <typename C>
struct Lanes {
  typedef typename C::T T;
  static constexpr int W = C::W, V = C::V, N = C::N, PIECES = C::PIECES;
  typedef typename Lane<T>::Integer Integer;

  alignas(64) Integer low[3][N];  // columns that the lane's row sees, per axis; none for a dead lane
  alignas(64) Integer high[3][N];
  int row[3][N];                  // position inside the dilation group
  bool live[N];                   // the row exists; a dead lane repeats the last row and stores nothing
  int split;                      // the axis along which pieces lie
  Span box[PIECES][3];            // columns that any row of the piece sees
  Span common[PIECES][3];         // columns that every lane of the piece sees
  int group[3], step[3];          // token = position * step + group

  // Rows of a patch
  void find(const Walk& walk, const Place& place) {
    split = walk.split;
    for (int lane = 0; lane < N; ++lane) live[lane] = true;
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = walk.axis[a];
      group[a] = place.group[a], step[a] = axis.d;
      const int rows = na::group_length(axis.rows, group[a], axis.d);
      const int columns = na::group_length(axis.columns, group[a], axis.d);
      const int count = na::minimum(axis.patch, rows - place.corner[a]);
      Span seen[N];
      for (int c = 0; c < axis.patch; ++c) {
        seen[c] = c < count ? interval(place.corner[a] + c, axis, columns, walk.transposed) : Span{0, 0};
      }
      for (int piece = 0; piece < PIECES; ++piece) {
        const int first = piece * (axis.patch - axis.piece), last = first + axis.piece - 1;
        const int end = seen[na::minimum(last, count - 1)].high;
        box[piece][a] = {first < count ? seen[first].low : end, end};
        common[piece][a] = last < count ? Span{seen[last].low, seen[first].high} : Span{0, 0};
      }
      for (int lane = 0; lane < N; ++lane) {
        const int c = walk.coordinate[a][lane];
        low[a][lane] = seen[c].low, high[a][lane] = seen[c].high;
        row[a][lane] = place.corner[a] + na::minimum(c, count - 1);
        live[lane] = live[lane] && c < count;
      }
    }
    for (int lane = 0; lane < N; ++lane) {
      if (!live[lane]) low[2][lane] = high[2][lane] = 0;
    }
  }

  // Rows `first` .. of `count` tokens side by side (additional keys), all of which see the whole of `seen`
  void find_tokens(int first, int count, const Span* seen) {
    split = 2;
    for (int a = 0; a < 3; ++a) {
      for (int piece = 0; piece < PIECES; ++piece) box[piece][a] = common[piece][a] = seen[a];
      group[a] = 0, step[a] = 1;
      for (int lane = 0; lane < N; ++lane) row[a][lane] = 0;
    }
    for (int lane = 0; lane < N; ++lane) {
      live[lane] = first + lane < count;
      row[2][lane] = na::minimum(first + lane, count - 1);
    }
  }

  // Element offset of each lane's row
  void offsets(const Tensor& tensor, int batch, int head, int64_t* out) const {
    const int64_t base = batch * tensor.batch + head * tensor.head;
    for (int lane = 0; lane < N; ++lane) out[lane] = base;
    for (int a = 0; a < 3; ++a) {
      if (tensor.axis[a] == 0) continue;
      for (int lane = 0; lane < N; ++lane) out[lane] += (int64_t(row[a][lane]) * step[a] + group[a]) * tensor.axis[a];
    }
  }

  void addresses(const Tensor& tensor, int batch, int head, char** out) const {
    int64_t at[N];
    offsets(tensor, batch, head, at);
    for (int lane = 0; lane < N; ++lane) out[lane] = tensor.at(at[lane]);
  }

  // One number per lane
  void read_scalars(const Tensor& tensor, int batch, int head, Vector<T>* out) const {
    int64_t at[N];
    alignas(64) T values[N];
    offsets(tensor, batch, head, at);
    for (int lane = 0; lane < N; ++lane) values[lane] = reinterpret_cast<const T*>(tensor.data)[at[lane]];
    for (int v = 0; v < V; ++v) out[v] = load(values + v * W);
  }

  void write_scalars(const Tensor& tensor, int batch, int head, const T* values) const {
    int64_t at[N];
    offsets(tensor, batch, head, at);
    for (int lane = 0; lane < N; ++lane) {
      if (live[lane]) reinterpret_cast<T*>(tensor.data)[at[lane]] = values[lane];
    }
  }

  // out[d][lane] = factor * row[lane][d]; `rows` holds N rows of `width` rounded up to W
  void read(const Tensor& tensor, int batch, int head, int width, T factor, T* rows, Vector<T>* out) const {
    const int padded = (width + W - 1) / W * W, whole = width / W * W;
    const bool in_place = tensor.channel == 1 && element_size(tensor.dtype) == int(sizeof(T));
    int64_t at[N];
    const T* from[N];
    offsets(tensor, batch, head, at);
    for (int lane = 0; lane < N; ++lane) {
      T* copy = rows + int64_t(lane) * padded;
      const char* row_at = tensor.at(at[lane]);
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

  // row[lane] = factor[lane] * sums[lane], rounded once; the sums are lost
  void write(const Tensor& tensor, int batch, int head, int width, const Vector<T>* factor, T* sums) const {
    const int padded = (width + W - 1) / W * W;
    int64_t at[N];
    offsets(tensor, batch, head, at);
    for (int lane = 0; lane < N; ++lane) {
      if (live[lane]) {
        T* const row = sums + int64_t(lane) * padded;
        for (int d = 0; d < padded; d += W) store(row + d, load(row + d) * factor[lane / W][lane % W]);
        write_row(tensor.dtype, tensor.at(at[lane]), tensor.channel, width, row);
      }
    }
  }
};

}  // namespace NATTEN_ISA
}  // namespace natten
