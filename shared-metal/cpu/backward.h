// Fused neighborhood attention, gradients.
//
//   P[i,j] = norm[i] exp(l[i,j] - lse[i])       delta[i] = sum_c dO[i,c] O[i,c] - dLSE[i]
//   dS[i,j] = P[i,j] (dO[i].v[j] - delta[i])
//   dQ[i] = scale * sum_j dS[i,j] k[j]       dK[j] = scale * sum_i dS[i,j] q[i]       dV[j] = sum_i P[i,j] dO[i]
//
//   shapes as in forward.h; dQ like q, dK like k, dV like v
//
//        dQ: lanes are queries, columns the keys of their windows       (and dRpb, by parts: rpb.h)
//        dK, dV: lanes are keys, columns the queries that see them, by the inverse window; the query heads of a
//        key/value head follow one another
//        additional keys and values: lanes are their tokens, columns all queries, split into parts (additional.h)
//
// The weights are computed again, by the same products in the same order as in the forward. lse is rounded to the
// kernel's own type: at a logit of 1e5 a float is off by up to 0.004, and so would be every weight of the row, by 0.4%.
// Their sum corrects it: norm[i] = 1 / sum_j exp(l[i,j] - lse[i]). The walk over queries computes it, and the other
// walks use it. A row whose lse is -inf has no weights: there `shift`, which stands for lse, is +inf and norm is 0.
//
// Units of work never write to the same element. Source: FlashAttention-2 (arXiv 2307.08691); the inverse window is
// kernels/window.h.
#pragma once

#include "additional.h"

namespace natten {
namespace NATTEN_ISA {

// --- delta -------------------------------------------------------------------------------------------------

template <typename C>
struct DeltaBody {
  typedef typename C::T T;
  const Operands& op;
  static constexpr int64_t kRows = 64, kStats = 3;  // numbers of a query row that the walks share

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
    reinterpret_cast<T*>(op.delta.data)[row * kStats] = delta;
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

// --- queries -----------------------------------------------------------------------------------------------

template <typename C>
struct QuerySum {
  typedef typename C::T T;
  static constexpr int V = C::V;
  PairGradients<C, true> pairs;
  bool wanted = false;      // dQ
  double* table = nullptr;  // gradient of rpb, or NULL
  Vector<T> weight[V] = {};
  Totals<C> queries = {}, weights = {};
  PerLane<C, double> weight_totals = {};
  Stretches stretches = {};

  void begin() {
    queries = pairs.scratch.sums_of_a(pairs.dim);
    weights = {reinterpret_cast<T*>(weight), weight_totals.of, 1};
    stretches = {};
    queries.begin(), weights.begin();
  }

  void take(const Block<C>& block) {
    const Scratch<C>& s = pairs.scratch;
    pairs.find(block, wanted || table, weight);
    if (table && pairs.rpb) add_to_table(block, *pairs.index, s.pairs_b, table);
    if (wanted) accumulate<C>(block.on, s.pairs_b, block.a, block.ranges, pairs.dim, s.sums_a);
    if (stretches.end()) queries.end_stretch(nullptr), weights.end_stretch(nullptr);
  }

  void end() {
    if (!stretches.several()) return;
    queries.end_stretch(nullptr), weights.end_stretch(nullptr);
    queries.fold(), weights.fold();
  }
};

template <typename C>
struct QueryBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  // table: the gradient of rpb. It needs norm before the first pair is added, so a walk of its own finds norm first
  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch, double* table = nullptr) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int batch = unit.batch, head = unit.head;
    const Scale<T> scale(p.scale);
    lanes.read(op.query, batch, head, p.dim, scale.sign, scratch.rows, scratch.lanes_a);
    lanes.read(op.out_grad, batch, head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    PairIndex<C> index;
    QuerySum<C> sum = {{scratch, scale.size, p.dim, p.dim_v, &index}};
    lanes.read_scalars(op.lse, batch, head, sum.pairs.shift);
    lanes.read_scalars(op.delta, batch, head, sum.pairs.delta);
    for (int v = 0; v < V; ++v) {
      sum.pairs.shift[v] = shift_of(sum.pairs.shift[v]);
      sum.pairs.norm[v] = splat(T(1));
    }
    if (table) {
      visit(lanes, unit, scratch, index, sum);
      for (int v = 0; v < V; ++v) sum.pairs.norm[v] = reciprocal(sum.weight[v]);
      sum.pairs.normed = true;
    }
    sum.table = table, sum.wanted = op.query_grad.data != nullptr;
    visit(lanes, unit, scratch, index, sum);
    Vector<T> factor[V];
    alignas(64) T shift[C::N], norm[C::N];
    for (int v = 0; v < V; ++v) {
      const Vector<T> rest = reciprocal(sum.weight[v]);
      factor[v] = rest * T(p.scale);
      store(shift + v * C::W, sum.pairs.shift[v]);
      store(norm + v * C::W, rest * sum.pairs.norm[v]);
    }
    lanes.write_scalars(op.shift, batch, head, shift);
    lanes.write_scalars(op.norm, batch, head, norm);
    if (sum.wanted) lanes.write(op.query_grad, batch, head, p.dim, factor, scratch.sums_a);
  }

  void visit(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch, PairIndex<C>& index,
             QuerySum<C>& sum) const {
    const Problem& p = op.problem;
    const int batch = unit.batch, kv_head = unit.head / p.group_heads;
    ColumnWalk<C, QuerySum<C>> columns(lanes, scratch.patch.marks, sum);
    sum.begin();
    sum.pairs.rpb = nullptr;
    walk_additional(op, batch, kv_head, scratch, columns);
    Columns<C> sides;
    sides.a = side_of(op.key, batch, kv_head, lanes, p.dim, scratch.columns_a);
    sides.b = side_of(op.value, batch, kv_head, lanes, p.dim_v, scratch.columns_b);
    sides.mask = mask_of<T>(op.key_mask, batch, lanes);
    if (op.rpb) {
      sum.pairs.rpb = rpb_of_head<T>(op, unit.head);
      index_rpb(index, lanes, p, false);
      sides.rpb = &index;
    }
    columns.patch(sides);
    sum.end();
  }
};

// --- keys and values ---------------------------------------------------------------------------------------

template <typename C>
struct KeyBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int batch = unit.batch;
    const Scale<T> scale(p.scale);
    lanes.read(op.key, batch, unit.head, p.dim, scale.sign, scratch.rows, scratch.lanes_a);
    lanes.read(op.value, batch, unit.head, p.dim_v, T(1), scratch.rows, scratch.lanes_b);
    PairIndex<C> index;
    KeySum<C> sum = {{scratch, scale.size, p.dim, p.dim_v, &index}, op.key_grad.data != nullptr,
                     op.value_grad.data != nullptr};
    sum.begin();
    ColumnWalk<C, KeySum<C>> columns(lanes, scratch.patch.marks, sum);
    if (op.rpb) index_rpb(index, lanes, p, true);
    for (int head = unit.head * p.group_heads; head < (unit.head + 1) * p.group_heads; ++head) {
      Columns<C> sides = query_columns(op, batch, head, lanes, scratch);
      if (op.rpb) {
        sum.pairs.rpb = rpb_of_head<T>(op, head);
        sides.rpb = &index;
      }
      columns.patch(sides);
    }
    sum.end();
    if (op.key_mask.data) clear_masked(lanes, batch, scratch);
    Vector<T> factor[V], one[V];
    for (int v = 0; v < V; ++v) factor[v] = splat(T(p.scale)), one[v] = splat(T(1));
    if (sum.wants_keys) lanes.write(op.key_grad, batch, unit.head, p.dim, factor, scratch.sums_a);
    if (sum.wants_values) lanes.write(op.value_grad, batch, unit.head, p.dim_v, one, scratch.sums_b);
  }

  // Lanes of masked keys were computed like the others; their gradients are 0
  void clear_masked(const Lanes<C>& lanes, int batch, Scratch<C>& scratch) const {
    const int64_t a = Scratch<C>::rounded(op.problem.dim), b = Scratch<C>::rounded(op.problem.dim_v);
    int64_t at[C::N];
    lanes.offsets(op.key_mask, batch, 0, at);
    for (int lane = 0; lane < C::N; ++lane) {
      if (op.key_mask.data[at[lane]]) continue;
      for (int64_t d = 0; d < a; ++d) scratch.sums_a[lane * a + d] = T(0);
      for (int64_t d = 0; d < b; ++d) scratch.sums_b[lane * b + d] = T(0);
    }
  }
};

// --- all of them -------------------------------------------------------------------------------------------

template <typename C>
int backward(const Operands& given) {
  typedef typename C::T T;
  Operands op = given;
  const Problem& p = op.problem;
  const DeltaBody<C> delta = {op};
  const int64_t rows = delta.rows();
  const Memory memory(delta.kStats * rows * int64_t(sizeof(T)));
  if (!memory.data()) return NATTEN_NO_MEMORY;
  const int dtype = sizeof(T) == 8 ? NATTEN_FLOAT64 : NATTEN_FLOAT32;
  op.shift = op.norm = op.delta = contiguous_tensor(memory.data(), dtype, p.query_shape, p.heads, delta.kStats);
  op.norm.data += sizeof(T), op.delta.data += 2 * sizeof(T);
  const int64_t units = (rows + delta.kRows - 1) / delta.kRows;
  int status = launch<C>(delta, units, rows * p.dim_v, p.dim_v, p.dim_v, p.threads);
  const bool keys = op.key_grad.data || op.value_grad.data;
  const bool additional = p.additional && (op.additional_keys_grad.data || op.additional_values_grad.data);
  const Walk queries = plan_walk<C>(p, false);
  const QueryBody<C> query = {op, queries};
  if (status == NATTEN_OK && op.rpb_grad) {
    status = launch_parts<C>(query, queries, op, p.dim, p.dim_v);
  } else if (status == NATTEN_OK && (op.query_grad.data || keys || additional)) {
    status = launch_walk<C>(query, queries, p, p.additional, p.dim, p.dim_v);
  }
  if (status == NATTEN_OK && keys) {
    const Walk walk = plan_walk<C>(p, true);
    status = launch_walk<C>(KeyBody<C>{op, walk}, walk, p, 0, p.dim, p.dim_v);
  }
  return status == NATTEN_OK && additional ? additional_gradients<C>(op) : status;
}

}  // namespace NATTEN_ISA
}  // namespace natten
