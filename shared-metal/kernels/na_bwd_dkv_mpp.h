// Fused neighborhood attention, gradients of the keys and values, on matrix units: what na_bwd_dkv.h computes, in
// patches of 16 rows (mpp_walk.h).
//
//   dV[j] = sum_i P[i,j] dO[i]          dK[j] = scale * sum_i dS[i,j] q[i]        i: the queries whose windows hold j
//   P[i,j] = exp(scale * q[i].k[j] - lse[i]) / (their sum over j)      dS[i,j] = P[i,j] * (dO[i].v[j] - delta[i])
//
//   shapes, grid, threads and stats as in na_bwd_dkv.h; half and bfloat, no bias and no key mask; channels side by side
//
// Rows are keys, columns the queries that see them, head by head. Per brick: S = K Q^T, dP = V dO^T, dV += P dO,
// dK += dS Q. Both products are made by the same op, so their elements lie in the same slots; DA and DB are therefore
// equal. Stats belong to columns and are fetched from the lane that knows the column.
#pragma once

namespace na {

// P of a brick in place of S, and dS in place of dP in g. own: stats of the lane's own column
template <typename S>
METAL_FUNC void column_gradients(thread S& s, thread S& g, uint sees, float scale, Stats own) {
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
    const Place at = place_of(s, i);
    const float lse = simd_shuffle(own[0], at.column);
    const float factor = simd_shuffle(own[1], at.column);
    const float delta = simd_shuffle(own[2], at.column);
    const bool seen = (sees >> i & 1u) != 0u;
    const float p = seen ? weight_of<false>(s[i], scale, 0.0f, lse) * factor : 0.0f;
    s[i] = ten_bits(p);
    g[i] = seen ? ten_bits(p * (g[i] - delta)) : 0.0f;
  }
}

template <typename C>
METAL_FUNC void na_bwd_dkv_mpp(const device typename C::T* q, const device typename C::T* k,
                               const device typename C::T* v, const device typename C::T* out_grad,
                               const device float* stats, const thread Params& prm, device typename C::R* key_grad,
                               device typename C::R* value_grad, threadgroup uint4* shared, uint3 tgid, uint sg,
                               uint lane) {
  typedef typename C::T T;
  typedef WideSource<C> Source;
  typedef Across<T, typename Source::View, depth<C, C::DA>()> Products;
  typedef Along<T, typename Source::View, C::DA> Sums;
  static_assert(C::DA == C::DB, "S and dP must be products of one op");
  const int own_row = int(lane) % kSide;
  const Slice slice = find_slice<C>(prm, tgid, own_row);  // of one key/value head in each: HR is 1
  const int kv_head = int(tgid.x);
  WideBox<C, C::RANK> box;
  const thread Patch<C::RANK>& patch = box.patch;
  if (!box.find(prm, int(tgid.y), slice.group, int(sg), own_row)) return;
  WideMemory<C> memory;
  memory.find(shared, sg, true);
  const int dim = int(prm[kDim]);
  const int dim_v = int(prm[kDimV]);
  const Near<T> keys =
      patch_rows<C, C::DA>(memory.rows_a, k, prm, kKeyStride, patch, slice.batch, kv_head, dim, int(lane));
  const Near<T> values =
      patch_rows<C, C::DB>(memory.rows_b, v, prm, kValueStride, patch, slice.batch, kv_head, dim_v, int(lane));

  auto s = Products::products();
  auto g = Products::products();
  auto key_sum = Sums::sums();
  auto value_sum = Sums::sums();
  if (s.get_capacity() > kMostSlots) return;  // no such layout is known; the result stays unwritten, which shows
  fill(key_sum, 0.0f);
  fill(value_sum, 0.0f);
  const uint elements = elements_of(s);

  const float scale = as_type<float>(int(prm[kScaleBits]));
  const int group_heads = int(prm[kGroupHeads]);
  for (int h = 0; h < group_heads; ++h) {
    KeyGradient<C> queries;
    box.sides = queries.load_head(q, out_grad, stats, nullptr, prm, box.tile, slice.batch, kv_head * group_heads + h);
    const int bricks = box.begin(int(lane));
    for (int n = 0; n < bricks; ++n) {
      WideBrick<T> b;
      box.take(b, int(lane));
      const uint sees = seen_in_brick(s, elements, b.seen, int(lane));
      const Stats own = *(const device Stats*)(queries.stats + b.scalar);
      Products::multiply(s, keys, Source::template view<C::DA>(memory.columns, b.a, b.count, dim, int(lane)));
      const auto grads = Source::template view<C::DB>(memory.columns, b.b, b.count, dim_v, int(lane));
      Products::multiply(g, values, grads);
      column_gradients(s, g, sees, scale, own);
      Sums::multiply(value_sum, s, grads, memory.weights);
      Sums::multiply(key_sum, g, Source::template view<C::DA>(memory.columns, b.a, b.count, dim, int(lane)),
                     memory.weights);
    }
  }
  const long key_at = row_at(prm, kKeyGradStride, patch, slice.batch, kv_head);
  const long value_at = row_at(prm, kValueGradStride, patch, slice.batch, kv_head);
  write_rows(key_grad, key_sum, key_at, patch.store, scale * kLn2, dim);
  write_rows(value_grad, value_sum, value_at, patch.store, 1.0f, dim_v);
}

}  // namespace na
