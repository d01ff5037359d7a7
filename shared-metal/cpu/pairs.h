// What the walks of the backward share: the weights, computed again, their gradients, and sums over queries.
//
//   P[i,j] = norm[i] exp(l[i,j] - lse[i])       dS[i,j] = P[i,j] (dO[i].v[j] - delta[i])
//
// Equations and shapes: backward.h. Source: FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include "rpb.h"

namespace natten {
namespace NATTEN_ISA {

// --- pairs -------------------------------------------------------------------------------------------------

// P and dS of a block. LANES_ARE_QUERIES: shift, norm and delta belong to lanes, else to columns.
template <typename C, bool LANES_ARE_QUERIES>
struct PairGradients {
  typedef typename C::T T;
  static constexpr int V = C::V;
  const Scratch<C>& scratch;
  T scale;  // positive
  int dim, dim_v;
  const PairIndex<C>* index;
  const T* rpb = nullptr;
  Vector<T> shift[V] = {}, norm[V] = {}, delta[V] = {};  // of the lanes
  bool normed = !LANES_ARE_QUERIES;                      // norm is known

  // scratch.pairs_a = P, scratch.pairs_b = dS; without `gradients` P alone. sums: what the lanes' weights are added to
  void find(const Block<C>& block, bool gradients, Vector<T>* sums = nullptr) const {
    Vector<T>*p = scratch.pairs_a, *ds = scratch.pairs_b;
    dots<C>(block.on, scratch.lanes_a, block.a, block.b, block.count, dim, p);
    if (rpb) add_bias(block, *index, scale, rpb, p);
    if (gradients) dots<C>(block.on, scratch.lanes_b, block.b, block.a, block.count, dim_v, ds);
    if (normed) {
      weigh<true>(block, gradients, sums);
    } else {
      weigh<false>(block, gradients, sums);
    }
  }

 private:
  // From dot products to P and dS
  template <bool NORMED>
  NATTEN_INLINE void weigh(const Block<C>& block, bool gradients, Vector<T>* sums) const {
    Vector<T>*p = scratch.pairs_a, *ds = scratch.pairs_b;
    const T factor = rpb ? T(1) : scale;
    for (int v = block.on.first; v < block.on.end(); ++v) {
      Vector<T> sum = {};
      for (int i = 0; i < block.count; ++i) {
        const int at = i * V + v;
        const T* const stats = LANES_ARE_QUERIES ? nullptr : block.stats[i];
        const Vector<T> over = p[at] * factor - (LANES_ARE_QUERIES ? shift[v] : splat<T>(stats[0]));
        Vector<T> weight = exponential(over);
        if (NORMED) weight = weight * (LANES_ARE_QUERIES ? norm[v] : splat<T>(stats[1]));
        if (block.masked) weight = block.mask(i, v) ? weight : Vector<T>{};
        if (!LANES_ARE_QUERIES) p[at] = weight;  // dQ is a sum of dS alone
        if (LANES_ARE_QUERIES) sum += weight;
        if (!gradients) continue;
        Vector<T> gradient = weight * (ds[at] - (LANES_ARE_QUERIES ? delta[v] : splat<T>(stats[2])));
        if (block.masked) gradient = block.mask(i, v) ? gradient : Vector<T>{};
        ds[at] = gradient;
      }
      if (LANES_ARE_QUERIES) sums[v] += sum;
    }
  }
};

// --- sums over queries --------------------------------------------------------------------------------------

template <typename C>
struct KeySum {
  typedef typename C::T T;
  PairGradients<C, false> pairs;
  bool wants_keys, wants_values;
  Totals<C> keys = {}, values = {};
  Stretches stretches = {};

  void begin() {
    keys = pairs.scratch.sums_of_a(pairs.dim), values = pairs.scratch.sums_of_b(pairs.dim_v);
    keys.begin(), values.begin();
  }

  void take(const Block<C>& block) {
    pairs.find(block, wants_keys);
    const Scratch<C>& s = pairs.scratch;
    if (wants_values) accumulate<C>(block.on, s.pairs_a, block.b, block.ranges, pairs.dim_v, s.sums_b);
    if (wants_keys) accumulate<C>(block.on, s.pairs_b, block.a, block.ranges, pairs.dim, s.sums_a);
    if (stretches.end()) keys.end_stretch(nullptr), values.end_stretch(nullptr);
  }

  void end() {
    if (!stretches.several()) return;
    keys.end_stretch(nullptr), values.end_stretch(nullptr);
    keys.fold(), values.fold();
  }
};

// The queries of one head as columns: A = q, B = dO, with shift, norm and delta
template <typename C>
Columns<C> query_columns(const Operands& op, int batch, int head, const Lanes<C>& lanes, const Scratch<C>& scratch) {
  typedef typename C::T T;
  Columns<C> sides;
  const Problem& p = op.problem;
  sides.a = side_of(op.query, batch, head, lanes, p.dim, scratch.columns_a);
  sides.b = side_of(op.out_grad, batch, head, lanes, p.dim_v, scratch.columns_b);
  sides.stats = side_of<T>(op.shift, batch, head, lanes, 1, nullptr);
  return sides;
}

}  // namespace NATTEN_ISA
}  // namespace natten
