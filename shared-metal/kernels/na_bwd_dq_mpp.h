// Fused neighborhood attention, gradient of the queries, on matrix units: what na_bwd_dq.h computes, in patches of 16
// rows (mpp_walk.h).
//
//   W[i,j] = exp(scale * q[i].k[j] - lse[i])             P[i,j] = W[i,j] / sum_j W[i,j]
//   dS[i,j] = P[i,j] * (dO[i].v[j] - delta[i])           dQ[i] = scale * sum_j dS[i,j] k[j]
//   stats[i] = (lse[i] in base 2, 1 / sum_j W[i,j], delta[i], 0)
//
//   shapes, grid and threads as in na_bwd_dq.h; half and bfloat, no bias and no key mask; channels side by side
//
// Per brick: dP = dO V^T, S = Q K^T, dQ += dS K. Both products are made by the same op, so their elements lie in the
// same slots; DA and DB are therefore equal. lse and delta of a row are fetched from the lane that knows it.
#pragma once

namespace na {

// dS of a brick, not yet divided by the sum of W, in place of dP in g. weights: sums of W so far, slot by slot; lse (in
// base 2), delta: of the lane's own row
template <typename S>
METAL_FUNC void row_gradients(thread S& s, thread S& g, thread float* weights, uint sees, float scale, float lse,
                              float delta) {
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
    const Place at = place_of(s, i);
    const float row_lse = simd_shuffle(lse, at.row);
    const float row_delta = simd_shuffle(delta, at.row);
    const bool seen = (sees >> i & 1u) != 0u;
    const float weight = seen ? weight_of<false>(s[i], scale, 0.0f, row_lse) : 0.0f;
    weights[i] += weight;
    g[i] = seen ? ten_bits(weight * (g[i] - row_delta)) : 0.0f;
  }
}

template <typename C>
METAL_FUNC void na_bwd_dq_mpp(const device typename C::T* q, const device typename C::T* k,
                              const device typename C::T* v, const device typename C::T* additional_k,
                              const device typename C::T* additional_v, const device typename C::T* out_grad,
                              const device float* lse, const device float* delta, const thread Params& prm,
                              device typename C::T* query_grad, device float* stats, threadgroup uint4* shared,
                              uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  typedef WideSource<C> Source;
  typedef Across<T, typename Source::View, depth<C, C::DA>()> Products;
  typedef Along<T, typename Source::View, C::DA> Sums;
  static_assert(C::DA == C::DB, "S and dP must be products of one op");
  const int own_row = int(lane) % kSide;
  const Slice slice = find_slice<C>(prm, tgid, own_row);
  WideKeys<C> keys;
  const thread Patch<C::RANK>& patch = keys.own.patch;
  if (!keys.own.find(prm, int(tgid.y), slice.group, int(sg), own_row)) return;
  WideMemory<C> memory;
  memory.find(shared, sg, true);
  const int dim = int(prm[kDim]);
  const int dim_v = int(prm[kDimV]);
  const Near<T> queries =
      patch_rows<C, C::DA>(memory.rows_a, q, prm, kQueryStride, patch, slice.batch, slice.head, dim, int(lane));
  const Near<T> out_grads = patch_rows<C, C::DB>(memory.rows_b, out_grad, prm, kOutGradStride, patch, slice.batch,
                                                 slice.head, dim_v, int(lane));
  const long scalar = row_at(prm, kLseStride, patch, slice.batch, slice.head);
  const float own_lse = as_type<uint>(lse[scalar]) == kMinusInfinityBits ? -kMasked : lse[scalar] * kLog2E;
  const float own_delta = delta[scalar];

  auto s = Products::products();
  auto g = Products::products();
  auto total = Products::row_values();
  auto sum = Sums::sums();
  if (s.get_capacity() > kMostSlots) return;  // no such layout is known; the result stays unwritten, which shows
  fill(sum, 0.0f);
  float weights[kMostSlots] = {};
  const uint elements = elements_of(s);
  RowSlots slots;
  slots.find(s, total);

  const float scale = as_type<float>(int(prm[kScaleBits]));
  const int bricks = keys.begin(k, v, additional_k, additional_v, prm, slice, memory.columns, int(lane));
  for (int n = 0; n < bricks; ++n) {
    WideBrick<T> b;
    keys.take(b, n, int(lane));
    const uint sees = seen_in_brick(s, elements, b.seen, int(lane));
    Products::multiply(g, out_grads, Source::template view<C::DB>(memory.columns, b.b, b.count, dim_v, int(lane)));
    const auto columns = Source::template view<C::DA>(memory.columns, b.a, b.count, dim, int(lane));
    Products::multiply(s, queries, columns);
    row_gradients(s, g, weights, sees, scale, own_lse, own_delta);
    Sums::multiply(sum, g, columns, memory.weights);
  }

  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) s[i] = weights[i];
  sums_of_rows(s, total);
  const float own_total = value_of_row(memory.line, s, total, slots, elements, own_row);
  const float factor = as_type<uint>(own_total) == 0u ? 0.0f : 1.0f / own_total;
  if (patch.store && int(lane) < kSide) ((device Stats*)stats)[scalar] = Stats(own_lse, factor, own_delta, 0.0f);
  write_rows(query_grad, sum, row_at(prm, kQueryGradStride, patch, slice.batch, slice.head), patch.store,
             scale * kLn2 * factor, dim);
}

}  // namespace na
