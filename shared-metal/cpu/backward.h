// Fused neighborhood attention, gradients.
//
//   P[i,j] = exp(l[i,j] - lse[i])       delta[i] = sum_c dO[i,c] O[i,c] - dLSE[i]
//   dS[i,j] = P[i,j] (dO[i].v[j] - delta[i])
//   dQ[i] = scale * sum_j dS[i,j] k[j]       dK[j] = scale * sum_i dS[i,j] q[i]       dV[j] = sum_i P[i,j] dO[i]
//
//   shapes as in forward.h; dQ like q, dK like k, dV like v
//
//        dQ: lanes are queries, columns the keys of their windows       (and dBias, by parts: bias.h)
//        dK, dV: lanes are keys, columns the queries that see them, by the inverse window; the query heads of a
//        key/value head follow one another
//        additional keys and values: lanes are their tokens, columns all queries; queries are dealt to parts whose
//        number depends on the problem alone, and the parts' sums are added in order
//
// No two units of work write one number, and the weights are computed again from lse. Source: FlashAttention-2
// (arXiv 2307.08691); the inverse window is kernels/window.h.
#pragma once

#include "bias.h"

namespace natten {
namespace NATTEN_ISA {

// --- delta -------------------------------------------------------------------------------------------------

template <typename C>
struct DeltaBody {
  typedef typename C::T T;
  const Operands& op;
  static constexpr int64_t kRows = 64;

  int64_t rows() const { return op.problem.batch * product(op.problem.query_shape) * op.problem.heads; }

  void unit(int64_t number, Scratch<C>& scratch) const {
    const int64_t last = (number + 1) * kRows < rows() ? (number + 1) * kRows : rows();
    for (int64_t row = number * kRows; row < last; ++row) one(row, scratch);
  }

  void one(int64_t row, Scratch<C>& scratch) const {
    const Problem& p = op.problem;
    int64_t rest = row / p.heads, out = (row % p.heads) * op.out.head, grad = (row % p.heads) * op.out_grad.head;
    int64_t lse = (row % p.heads) * op.lse_grad.head;
    for (int a = 2; a >= -1; --a) {
      const int64_t at = a < 0 ? rest : rest % p.query_shape[a];
      out += at * (a < 0 ? op.out.batch : op.out.axis[a]);
      grad += at * (a < 0 ? op.out_grad.batch : op.out_grad.axis[a]);
      lse += at * (a < 0 ? op.lse_grad.batch : op.lse_grad.axis[a]);
      if (a >= 0) rest /= p.query_shape[a];
    }
    const T *o = scratch.columns_a, *g = scratch.columns_b;
    if (reads_in_place<T>(op.out)) {
      o = reinterpret_cast<const T*>(op.out.at(out));
    } else {
      read_row(op.out.dtype, op.out.at(out), op.out.channel, p.dim_v, scratch.columns_a);
    }
    if (reads_in_place<T>(op.out_grad)) {
      g = reinterpret_cast<const T*>(op.out_grad.at(grad));
    } else {
      read_row(op.out_grad.dtype, op.out_grad.at(grad), op.out_grad.channel, p.dim_v, scratch.columns_b);
    }
    T delta = dot(o, g, p.dim_v);
    if (op.lse_grad.data) delta -= reinterpret_cast<const T*>(op.lse_grad.data)[lse];
    reinterpret_cast<T*>(op.delta.data)[row] = delta;
  }

  static T dot(const T* a, const T* b, int width) {
    constexpr int W = C::W;
    Vector<T> sums = {};
    int d = 0;
    for (; d + W <= width; d += W) sums += load(a + d) * load(b + d);
    T sum = T(0);
    for (int i = 0; i < W; ++i) sum += sums[i];
    for (; d < width; ++d) sum += a[d] * b[d];
    return sum;
  }
};

// --- pairs -------------------------------------------------------------------------------------------------

// P and dS of a block. LANES_ARE_QUERIES: lse and delta belong to lanes, else to columns.
template <typename C, bool LANES_ARE_QUERIES>
struct PairGradients {
  typedef typename C::T T;
  static constexpr int V = C::V;
  const Scratch<C>& scratch;
  const T* bias;
  const PairIndex<C>* index;
  int dim, dim_v;
  Vector<T> lse[V], delta[V];  // of the lanes

  // scratch.pairs_a = P, scratch.pairs_b = dS; without `gradients` P alone
  void find(const Block<C>& block, bool gradients) const {
    Vector<T>*p = scratch.pairs_a, *ds = scratch.pairs_b;
    dots<C>(block.on, scratch.lanes_a, block.a, block.b, block.count, dim, p);
    if (bias) add_bias(block, *index, bias, p);
    if (gradients) dots<C>(block.on, scratch.lanes_b, block.b, block.a, block.count, dim_v, ds);
    for (int v = block.on.first; v < block.on.end(); ++v) {
      for (int i = 0; i < block.count; ++i) {
        const int at = i * V + v;
        Vector<T> weight = exponential(p[at] - (LANES_ARE_QUERIES ? lse[v] : splat<T>(block.lse[i])));
        if (block.masked) weight = block.mask(i, v) ? weight : Vector<T>{};
        p[at] = weight;
        if (!gradients) continue;
        Vector<T> gradient = weight * (ds[at] - (LANES_ARE_QUERIES ? delta[v] : splat<T>(block.delta[i])));
        if (block.masked) gradient = block.mask(i, v) ? gradient : Vector<T>{};
        ds[at] = gradient;
      }
    }
  }
};

// --- queries -----------------------------------------------------------------------------------------------

template <typename C>
struct QuerySum {
  typedef typename C::T T;
  PairGradients<C, true> pairs;
  T* table;   // gradient of the bias, or NULL
  bool wanted;

  void take(const Block<C>& block) {
    pairs.find(block, true);
    if (table && pairs.bias) add_to_table(block, *pairs.index, pairs.scratch.pairs_b, table);
    const Scratch<C>& s = pairs.scratch;
    if (wanted) accumulate<C>(block.on, s.pairs_b, block.a, block.ranges, pairs.dim, s.sums_a);
  }
};

template <typename C>
struct QueryBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  void patch(const Lanes<C>& lanes, const Place& place, Scratch<C>& scratch, T* table = nullptr) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int batch = place.batch, head = place.head, kv_head = head / p.group_heads;
    lanes.read(op.query, batch, head, p.dim, T(p.scale), scratch.rows, scratch.lanes_a);
    lanes.read(op.out_grad, batch, head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    PairIndex<C> index;
    Block<C> block;
    QuerySum<C> sum = {{scratch, nullptr, &index, p.dim, p.dim_v, {}, {}}, table, op.query_grad.data != nullptr};
    clear<C>(p.dim, scratch.sums_a);
    lanes.read_scalars(op.lse, batch, head, sum.pairs.lse);
    lanes.read_scalars(op.delta, batch, head, sum.pairs.delta);
    ColumnWalk<C, QuerySum<C>> columns(lanes, block, sum);
    walk_additional(op, batch, kv_head, scratch, columns);
    Columns<C> sides;
    sides.a = side_of(op.key, batch, kv_head, lanes.group, lanes.step, p.dim, scratch.columns_a);
    sides.b = side_of(op.value, batch, kv_head, lanes.group, lanes.step, p.dim_v, scratch.columns_b);
    if (op.bias) {
      sum.pairs.bias = bias_table<T>(op, head);
      index_bias(index, lanes, p, false);
      sides.bias = &index;
    }
    columns.patch(sides);
    if (!sum.wanted) return;
    Vector<T> factor[V];
    for (int v = 0; v < V; ++v) factor[v] = splat(T(p.scale));
    lanes.write(op.query_grad, batch, head, p.dim, factor, scratch.sums_a);
  }
};

// --- keys and values ---------------------------------------------------------------------------------------

template <typename C>
struct KeySum {
  typedef typename C::T T;
  PairGradients<C, false> pairs;
  bool keys, values;  // which gradients are wanted

  void begin() const {
    clear<C>(pairs.dim, pairs.scratch.sums_a);
    clear<C>(pairs.dim_v, pairs.scratch.sums_b);
  }

  void take(const Block<C>& block) {
    pairs.find(block, keys);
    const Scratch<C>& s = pairs.scratch;
    if (values) accumulate<C>(block.on, s.pairs_a, block.b, block.ranges, pairs.dim_v, s.sums_b);
    if (keys) accumulate<C>(block.on, s.pairs_b, block.a, block.ranges, pairs.dim, s.sums_a);
  }
};

// The queries of one head as columns: A = q, B = dO, with lse and delta
template <typename C>
Columns<C> query_columns(const Operands& op, int batch, int head, const Lanes<C>& lanes, const Scratch<C>& scratch) {
  typedef typename C::T T;
  Columns<C> sides;
  const Problem& p = op.problem;
  sides.a = side_of(op.query, batch, head, lanes.group, lanes.step, p.dim, scratch.columns_a);
  sides.b = side_of(op.out_grad, batch, head, lanes.group, lanes.step, p.dim_v, scratch.columns_b);
  sides.lse = side_of<T>(op.lse, batch, head, lanes.group, lanes.step, 1, nullptr);
  sides.delta = side_of<T>(op.delta, batch, head, lanes.group, lanes.step, 1, nullptr);
  return sides;
}

template <typename C>
struct KeyBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  void patch(const Lanes<C>& lanes, const Place& place, Scratch<C>& scratch) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int batch = place.batch;
    lanes.read(op.key, batch, place.head, p.dim, T(p.scale), scratch.rows, scratch.lanes_a);
    lanes.read(op.value, batch, place.head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    PairIndex<C> index;
    Block<C> block;
    KeySum<C> sum = {{scratch, nullptr, &index, p.dim, p.dim_v, {}, {}}, op.key_grad.data != nullptr,
                     op.value_grad.data != nullptr};
    sum.begin();
    ColumnWalk<C, KeySum<C>> columns(lanes, block, sum);
    if (op.bias) index_bias(index, lanes, p, true);
    for (int head = place.head * p.group_heads; head < (place.head + 1) * p.group_heads; ++head) {
      Columns<C> sides = query_columns(op, batch, head, lanes, scratch);
      if (op.bias) {
        sum.pairs.bias = bias_table<T>(op, head);
        sides.bias = &index;
      }
      columns.patch(sides);
    }
    Vector<T> scale[V], one[V];
    for (int v = 0; v < V; ++v) scale[v] = splat(T(p.scale)), one[v] = splat(T(1));
    if (sum.keys) lanes.write(op.key_grad, batch, place.head, p.dim, scale, scratch.sums_a);
    if (sum.values) lanes.write(op.value_grad, batch, place.head, p.dim_v, one, scratch.sums_b);
  }
};

// --- additional keys and values ----------------------------------------------------------------------------

template <typename C>
struct AdditionalBody {
  typedef typename C::T T;
  const Operands& op;
  Tensor key_sums, value_sums;  // [parts * B, S, H_kv, D or D_v], the parts' sums
  int patches, parts, axis;     // queries are dealt to parts along `axis`
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
    Lanes<C> lanes;
    lanes.find_tokens(tokens, patch * C::N, p.additional, box);
    lanes.read(op.additional_keys, batch, kv_head, p.dim, T(p.scale), scratch.rows, scratch.lanes_a);
    lanes.read(op.additional_values, batch, kv_head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    Block<C> block;
    KeySum<C> sum = {{scratch, nullptr, nullptr, p.dim, p.dim_v, {}, {}}, true, true};
    sum.begin();
    ColumnWalk<C, KeySum<C>> columns(lanes, block, sum);
    for (int head = kv_head * p.group_heads; head < (kv_head + 1) * p.group_heads; ++head) {
      columns.patch(query_columns(op, batch, head, lanes, scratch));
    }
    Vector<T> scale[V], one[V];
    for (int v = 0; v < V; ++v) scale[v] = splat(T(p.scale)), one[v] = splat(T(1));
    lanes.write(key_sums, int(item), kv_head, p.dim, scale, scratch.sums_a);
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
  const int piece[3] = {1, 1, C::PIECE_LANES};
  body.tokens = make_grid<C>(piece, 2);
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

// --- all of them -------------------------------------------------------------------------------------------

template <typename C>
int backward(const Operands& given) {
  typedef typename C::T T;
  Operands op = given;
  const Problem& p = op.problem;
  const DeltaBody<C> delta = {op};
  const int64_t rows = delta.rows();
  const Memory memory(rows * int64_t(sizeof(T)));
  if (!memory.data()) return NATTEN_NO_MEMORY;
  const int dtype = sizeof(T) == 8 ? NATTEN_FLOAT64 : NATTEN_FLOAT32;
  op.delta = contiguous_tensor(memory.data(), dtype, p.query_shape, p.heads, 1);
  const int64_t units = (rows + delta.kRows - 1) / delta.kRows;
  int status = launch<C>(delta, units, rows * p.dim_v, p.dim_v, p.dim_v, p.threads);
  const Walk queries = plan_walk<C>(p, false);
  const QueryBody<C> query = {op, queries};
  if (status == NATTEN_OK && op.bias_grad) {
    status = launch_parts<C>(query, queries, op, p.dim, p.dim_v);
  } else if (status == NATTEN_OK && op.query_grad.data) {
    status = launch_walk<C>(query, queries, p, p.additional, p.dim, p.dim_v);
  }
  if (status == NATTEN_OK && (op.key_grad.data || op.value_grad.data)) {
    const Walk keys = plan_walk<C>(p, true);
    status = launch_walk<C>(KeyBody<C>{op, keys}, keys, p, 0, p.dim, p.dim_v);
  }
  if (status == NATTEN_OK && p.additional && (op.additional_keys_grad.data || op.additional_values_grad.data)) {
    status = additional_gradients<C>(op);
  }
  return status;
}

}  // namespace NATTEN_ISA
}  // namespace natten
