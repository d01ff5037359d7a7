// Gradients of additional keys and values, which every query sees.
//
//   dK[t] = scale * sum_i dS[i,t] q[i]       dV[t] = sum_i P[i,t] dO[i]       t: an additional token, i: all queries
//
// Lanes are tokens, columns queries. Queries are split into parts, whose number depends only on the problem, and the
// sums of the parts are added in order. Source: FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include "pairs.h"

namespace natten {
namespace NATTEN_ISA {

template <typename C>
struct AdditionalBody {
  typedef typename C::T T;
  const Operands& op;
  Tensor key_sums, value_sums;  // [parts * B, S, H_kv, D or D_v], the parts' sums
  int patches, parts, axis;     // queries are split into parts along `axis`
  Grid tokens;

  void unit(int64_t number, Scratch<C>& scratch) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int kv_head = int(number % p.kv_heads), patch = int(number / p.kv_heads % patches);
    const int64_t item = number / p.kv_heads / patches;  // part * B + batch
    const int batch = int(item % p.batch), part = int(item / p.batch);
    Span box[3];
    for (int a = 0; a < 3; ++a) box[a] = {0, p.query_shape[a]};
    const int64_t length = p.query_shape[axis];
    box[axis] = {int(length * part / parts), int(length * (part + 1) / parts)};
    Lanes<C>& lanes = scratch.patch.lanes;
    scratch.patch.marks.clear();
    lanes.find_tokens(tokens, patch * C::N, p.additional, box);
    const Scale<T> scale(p.scale);
    lanes.read(op.additional_keys, batch, kv_head, p.dim, scale.sign, scratch.rows, scratch.lanes_a);
    lanes.read(op.additional_values, batch, kv_head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    KeySum<C> sum = {{scratch, scale.size, p.dim, p.dim_v, nullptr}, true, true};
    sum.begin();
    ColumnWalk<C, KeySum<C>> columns(lanes, scratch.patch.marks, sum);
    for (int head = kv_head * p.group_heads; head < (kv_head + 1) * p.group_heads; ++head) {
      columns.patch(query_columns(op, batch, head, lanes, scratch));
    }
    sum.end();
    Vector<T> factor[V], one[V];
    for (int v = 0; v < V; ++v) factor[v] = splat(T(p.scale)), one[v] = splat(T(1));
    lanes.write(key_sums, int(item), kv_head, p.dim, factor, scratch.sums_a);
    lanes.write(value_sums, int(item), kv_head, p.dim_v, one, scratch.sums_b);
  }
};

// Adds the parts' sums in order, row by row, into a gradient
template <typename T>
void add_parts(const Tensor& sums, int parts, const Problem& p, int width, Tensor gradient) {
  if (!gradient.data) return;
  T* total = reinterpret_cast<T*>(sums.data);
  for (int batch = 0; batch < p.batch; ++batch) {
    for (int token = 0; token < p.additional; ++token) {
      for (int head = 0; head < p.kv_heads; ++head) {
        T* row = total + batch * sums.batch + token * sums.axis[2] + head * sums.head;
        for (int part = 1; part < parts; ++part) {
          const T* other = row + int64_t(part) * p.batch * sums.batch;
          for (int d = 0; d < width; ++d) row[d] += other[d];
        }
        const int64_t at = batch * gradient.batch + token * gradient.axis[2] + head * gradient.head;
        write_row(gradient.dtype, gradient.at(at), gradient.channel, width, T(1), row);
      }
    }
  }
}

template <typename C>
int additional_gradients(const Operands& op) {
  typedef typename C::T T;
  const Problem& p = op.problem;
  const int dtype = sizeof(T) == 8 ? NATTEN_FLOAT64 : NATTEN_FLOAT32;
  AdditionalBody<C> body = {op, {}, {}, (p.additional + C::N - 1) / C::N, 1, 0, {}};
  const int panel[3] = {1, 1, C::PANEL_LANES};
  body.tokens = make_grid<C>(panel, 2);
  while (body.axis < 2 && p.query_shape[body.axis] == 1) ++body.axis;
  const int64_t tiles = int64_t(p.batch) * p.kv_heads * body.patches;
  const int wanted = tiles ? int((63 + tiles) / tiles) : 1;
  body.parts = na::minimum(wanted, p.query_shape[body.axis]);
  const int64_t rows = int64_t(body.parts) * p.batch * p.additional * p.kv_heads;
  const Memory memory(rows * (p.dim + p.dim_v) * int64_t(sizeof(T)));
  if (!memory.data()) return NATTEN_NO_MEMORY;
  const int shape[3] = {1, 1, p.additional};
  body.key_sums = contiguous_tensor(memory.data(), dtype, shape, p.kv_heads, p.dim);
  char* const values = memory.data() + rows * p.dim * int64_t(sizeof(T));
  body.value_sums = contiguous_tensor(values, dtype, shape, p.kv_heads, p.dim_v);
  const int64_t work = rows / body.parts * product(p.query_shape) * p.group_heads * (p.dim + p.dim_v);
  const int status = launch<C>(body, tiles * body.parts, work, p.dim, p.dim_v, p.threads);
  if (status != NATTEN_OK) return status;
  add_parts<T>(body.key_sums, body.parts, p, p.dim, op.additional_keys_grad);
  add_parts<T>(body.value_sums, body.parts, p, p.dim_v, op.additional_values_grad);
  return NATTEN_OK;
}

}  // namespace NATTEN_ISA
}  // namespace natten
