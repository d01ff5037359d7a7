// Fused neighborhood attention, forward.
//
//   out[i] = sum_j P[i,j] v[j]     P[i,j] = exp(l[i,j] - lse[i])     lse[i] = log sum_j exp(l[i,j])
//   l[i,j] = scale * q[i].k[j] + bias[j - i]                          j: the window of i, and the additional keys
//   out[i] = 0, lse[i] = -inf   where every l[i,j] is -inf
//
//   q [B, *shape, H, D], k [B, *shape, H_kv, D], v [B, *shape, H_kv, D_v], out [B, *shape, H, D_v], lse [B, *shape, H]
//   additional keys and values [B, S, H_kv, D or D_v]; rpb [H, 2w - 1 per axis]
//
//        box of columns, 64 at a time     S = k Q^T     [64][N]   masked: -inf
//        +----------------+               top, total    [N]       kept as in the online softmax: sums are scaled
//        |################|   -- each --> O = c O + P^T v [N][D_v] down when the top rises
//        |########        |
//        +----------------+
//
// Source: FlashAttention (arXiv 2205.14135), online softmax (arXiv 1805.02867); windows as in kernels/window.h.
#pragma once

#include "rpb.h"
#include "launch.h"

namespace natten {
namespace NATTEN_ISA {

// The running softmax of a patch
template <typename C>
struct OnlineSoftmax {
  typedef typename C::T T;
  static constexpr int V = C::V;
  const Scratch<C>& scratch;
  T scale;  // positive
  int dim, dim_v;
  const PairIndex<C>* index;
  const T* rpb = nullptr;  // of the head, or NULL
  Vector<T> top[V] = {}, total[V] = {}, down[V] = {};
  Totals<C> out = {}, weights = {};
  PerLane<C, double> weight_totals = {};
  PerLane<C, T> last_top = {};  // of the last stretch
  Stretches stretches = {};

  void begin() {
    for (int v = 0; v < V; ++v) top[v] = splat<T>(Lane<T>::kLowest);
    out = scratch.sums_of_b(dim_v);
    weights = {reinterpret_cast<T*>(total), weight_totals.of, 1};
    out.begin(), weights.begin();
  }

  void take(const Block<C>& block) {
    Vector<T>* s = scratch.pairs_a;
    dots<C>(block.on, scratch.lanes_a, block.a, block.b, block.count, dim, s);
    if (rpb) add_bias(block, *index, scale, rpb, s);
    const T factor = rpb ? T(1) : scale;
    for (int v = block.on.first; v < block.on.end(); ++v) {
      weigh(block.masked ? raise<true>(block, v, factor) : raise<false>(block, v, factor), block.count, v, factor);
    }
    accumulate<C>(block.on, s, block.b, block.ranges, dim_v, scratch.sums_b, down);
    if (stretches.end()) end_stretch();
  }

  // Totals are scaled down to the current top
  void end_stretch() {
    double factors[C::N];
    for (int lane = 0; lane < C::N; ++lane) {
      const T now = top[lane / C::W][lane % C::W];
      factors[lane] = out.used ? exp(double(last_top.of[lane]) - double(now)) : 1;
      last_top.of[lane] = now;
    }
    out.end_stretch(factors), weights.end_stretch(factors);
  }

  void end() {
    if (!stretches.several()) return;
    end_stretch();
    out.fold(), weights.fold();
  }

  // Masks dot products and returns the new top. Four tops at a time: a single one would be a chain of dependent
  // operations. The largest product is the largest logit, since the factor is positive.
  template <bool MASKED>
  Vector<T> raise(const Block<C>& block, int v, T factor) const {
    const Vector<T> lowest = splat<T>(Lane<T>::kLowest), unseen = splat<T>(-T(__builtin_inff()));
    Vector<T> high[4] = {lowest, lowest, lowest, lowest};
    Vector<T>* const s = scratch.pairs_a + v;
    for (int i = 0; i < block.count; i += 4) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        if (u > 0 && i + u >= block.count) break;
        Vector<T>& product = s[(i + u) * V];
        if (MASKED) product = block.mask(i + u, v) ? product : unseen;
        high[u] = greater(high[u], product);
      }
    }
    const Vector<T> highest = greater(greater(high[0], high[1]), greater(high[2], high[3]));
    return greater(top[v], highest == lowest ? lowest : highest * factor);
  }

  void weigh(Vector<T> high, int count, int v, T factor) {
    Vector<T>* const s = scratch.pairs_a + v;
    const Vector<T> lowest = splat<T>(Lane<T>::kLowest);
    // a row that has seen nothing yet, or only -inf, has the lowest number as its top: its weights are 0, not exp(0)
    const Vector<T> shift = high == lowest ? Vector<T>{} : high;
    Vector<T> sum = {};
    for (int i = 0; i < count * V; i += V) sum += s[i] = exponential(s[i] * factor - shift);
    down[v] = exponential(top[v] - high);
    top[v] = high, total[v] = total[v] * down[v] + sum;
  }
};

template <typename C>
struct ForwardBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch) const {
    constexpr int V = C::V;
    const Problem& p = op.problem;
    const int kv_head = unit.head / p.group_heads;
    const Scale<T> scale(p.scale);
    lanes.read(op.query, unit.batch, unit.head, p.dim, scale.sign, scratch.rows, scratch.lanes_a);
    PairIndex<C> index;
    OnlineSoftmax<C> softmax = {scratch, scale.size, p.dim, p.dim_v, &index};
    softmax.begin();
    ColumnWalk<C, OnlineSoftmax<C>> columns(lanes, scratch.patch.marks, softmax);
    walk_additional(op, unit.batch, kv_head, scratch, columns);
    Columns<C> sides;
    sides.a = side_of(op.key, unit.batch, kv_head, lanes, p.dim, scratch.columns_a);
    sides.b = side_of(op.value, unit.batch, kv_head, lanes, p.dim_v, scratch.columns_b);
    sides.mask = mask_of<T>(op.key_mask, unit.batch, lanes);
    if (op.rpb) {
      softmax.rpb = rpb_of_head<T>(op, unit.head);
      index_rpb(index, lanes, p, false);
      sides.rpb = &index;
    }
    columns.patch(sides);
    softmax.end();
    Vector<T> inverse_total[V];
    alignas(64) T lse[C::N];
    for (int v = 0; v < V; ++v) inverse_total[v] = reciprocal(softmax.total[v]);
    for (int lane = 0; lane < C::N; ++lane) {
      const int v = lane / C::W, i = lane % C::W;
      lse[lane] = softmax.top[v][i] + logarithm(softmax.total[v][i]);
    }
    lanes.write(op.out, unit.batch, unit.head, p.dim_v, inverse_total, scratch.sums_b);
    if (op.lse.data) lanes.write_scalars(op.lse, unit.batch, unit.head, lse);
  }
};

template <typename C>
int forward(const Operands& op) {
  const Walk walk = plan_walk<C>(op.problem, false);
  const ForwardBody<C> body = {op, walk};
  return launch_walk<C>(body, walk, op.problem, op.problem.additional, op.problem.dim, op.problem.dim_v);
}

}  // namespace NATTEN_ISA
}  // namespace natten
