// Fused neighborhood attention, forward, on matrix units: what na_fwd.h computes, in patches of 16 rows (mpp_walk.h).
//
//   out[i] = sum_j P[i,j] v[j],  P[i,:] = softmax_j(scale * q[i].k[j]),  j in window(i) and all additional keys
//   lse[i] = log sum_j exp(scale * q[i].k[j])                            natural logarithm
//
//   shapes, grid and threads as in na_fwd.h; half and bfloat, no bias and no key mask; channels side by side
//
// Per brick: S = Q K^T, mask where partial, online softmax, O += P V. A row's maximum and sum are values of rows of S;
// O has a layout of its own, so the factor by which a row of it shrinks goes through a line of threadgroup memory, when
// any row's maximum has changed. Weights are summed before they are rounded to ten bits, because lse is a float. As in
// na_fwd.h nothing creates an infinity or a NaN, and what a row does not see has weight 0.
#pragma once

namespace na {

// Online softmax of a brick: logits become weights. top, sum: of each row so far; decay: by how much rows shrink.
// Returns whether any row does (uniform).
template <typename S, typename R>
METAL_FUNC bool soften(thread S& s, thread R& top, thread R& sum, thread R& decay, thread R& now,
                       const thread RowSlots& slots, uint sees, float scale) {
  const float sign = scale < 0.0f ? -1.0f : 1.0f;
  const float unit = abs(scale);
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) s[i] = (sees >> i & 1u) != 0u ? s[i] * sign : kMasked;
  largest_of_rows(s, now);
  bool moved = false;
  NA_UNROLL for (ushort j = 0; j < top.get_capacity(); ++j) {
    if (top.is_valid_element(j)) {
      const float higher = max(top[j], now[j]);
      decay[j] = exp2((top[j] - higher) * unit);
      moved = moved || higher != top[j];
      top[j] = higher;
    }
  }
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) {
    s[i] = (sees >> i & 1u) != 0u ? exp2((s[i] - top[slots.at[i]]) * unit) : 0.0f;
  }
  sums_of_rows(s, now);
  NA_UNROLL for (ushort i = 0; i < s.get_capacity(); ++i) s[i] = ten_bits(s[i]);
  NA_UNROLL for (ushort j = 0; j < top.get_capacity(); ++j) {
    if (top.is_valid_element(j)) sum[j] = sum[j] * decay[j] + now[j];
  }
  return simd_any(moved);
}

template <typename C>
METAL_FUNC void na_fwd_mpp(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                           const device typename C::T* additional_k, const device typename C::T* additional_v,
                           const thread Params& prm, device typename C::T* out, device float* lse,
                           threadgroup uint4* shared, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  typedef WideSource<C> Source;
  typedef Across<T, typename Source::View, depth<C, C::DA>()> Keys;
  typedef Along<T, typename Source::View, C::DB> Values;
  const int own_row = int(lane) % kSide;
  const Slice slice = find_slice<C>(prm, tgid, own_row);
  WideKeys<C> keys;
  const thread Patch<C::RANK>& patch = keys.own.patch;
  if (!keys.own.find(prm, int(tgid.y), slice.group, int(sg), own_row)) return;
  WideMemory<C> memory;
  memory.find(shared, sg, false);
  const int dim = int(prm[kDim]);
  const int dim_v = int(prm[kDimV]);
  const Near<T> rows =
      patch_rows<C, C::DA>(memory.rows_a, q, prm, kQueryStride, patch, slice.batch, slice.head, dim, int(lane));

  auto s = Keys::products();
  auto top = Keys::row_values();
  auto sum = Keys::row_values();
  auto decay = Keys::row_values();
  auto now = Keys::row_values();
  auto o = Values::sums();
  if (s.get_capacity() > kMostSlots) return;  // no such layout is known; the result stays unwritten, which shows
  fill(o, 0.0f);
  fill(top, kMasked);
  fill(sum, 0.0f);
  const uint elements = elements_of(s);
  RowSlots slots;
  slots.find(s, top);

  const float scale = as_type<float>(int(prm[kScaleBits]));
  const int bricks = keys.begin(k, v, additional_k, additional_v, prm, slice, memory.columns, int(lane));
  for (int n = 0; n < bricks; ++n) {
    WideBrick<T> b;
    keys.take(b, n, int(lane));
    const uint sees = seen_in_brick(s, elements, b.seen, int(lane));
    Keys::multiply(s, rows, Source::template view<C::DA>(memory.columns, b.a, b.count, dim, int(lane)));
    if (soften(s, top, sum, decay, now, slots, sees, scale)) {
      publish(memory.line, s, decay, slots, elements);
      scale_rows(o, memory.line);
    }
    Values::multiply(o, s, Source::template view<C::DB>(memory.columns, b.b, b.count, dim_v, int(lane)),
                     memory.weights);
  }

  const float own_top = value_of_row(memory.line, s, top, slots, elements, own_row) * abs(scale);
  const float total = value_of_row(memory.line, s, sum, slots, elements, own_row);
  if (patch.store && int(lane) < kSide) {
    lse[row_at(prm, kLseStride, patch, slice.batch, slice.head)] = (own_top + log2(total)) * kLn2;
  }
  write_rows(out, o, row_at(prm, kOutStride, patch, slice.batch, slice.head), patch.store, 1.0f / total, dim_v);
}

}  // namespace na
