// Fused neighborhood attention, forward.
//
//   out[i] = sum_j P[i,j] v[j],  P[i,:] = softmax_j(scale * q[i].k[j] + bias),  j in window(i) and all additional keys
//   lse[i] = log sum_j exp(scale * q[i].k[j] + bias)                             natural logarithm
//
//   q [B, *shape, H, D]   k [B, *shape, H_kv, D]   v [B, *shape, H_kv, D_v]   additional: [B, S, H_kv, D(_v)]
//   out [B, *shape, H, D_v]   lse [B, *shape, H] float   any strides (params.h)   rpb [H, 2w - 1 per axis] float
//   key_mask [B, *shape but x, ceil(X / 32)] int, a bit for each key (MASKED): where it is 0 the key is not seen
//   grid of threadgroups: (H / HR, tiles, B * dilation groups); threads per group: NSG * 32
//
// Rows are queries (coord.h has the picture), columns are keys: A = K, B = V (stage.h). Additional keys come first, as
// a box of rank 1. Per group of NB bricks: S = Q K^T, mask where partial, online softmax, O += P V.
//
// Unless a bias is added, the maximum is taken of q.k before scaling: the largest weight is then exactly 1, however
// large the logits, and their rounding affects no weight. (A negative scale flips the sign of the query instead.)
// The maximum of a row starts at kMasked, a finite number, and so do the logits of columns that it does not see; their
// weights are 0. The kernel itself never creates an infinity or a NaN, so fast math is safe. In a row whose logits are
// all -inf, because its biases are, the weights sum to 0: out 0, lse -inf.
// Source: FlashAttention (arXiv 2205.14135) for the online softmax.
#pragma once

namespace na {

// One patch: its query rows, un-normalised outputs, row maximum (in base 2 when multiplied by `unit`), and this lane's
// share of the row sum
template <typename C>
struct Forward {
  typedef typename C::T T;
  static constexpr constant int READ = kAcrossA | kAlongB;
  Pair<T> query[C::DA / 8];
  Sums<C::DB / 8, C::PART> out;
  float m;
  float l;
  Parts<C::PART> parts;
  float m_total;  // maximum and row sum at the end of the last part
  float l_total;
  float scale;
  float unit;
  const device float* rpb;  // of the row's head
  bool biased;              // uniform: off for additional keys
  int fr;
  int fc;

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int bricks, const thread A& keys, const thread B& values,
                       Span seen) thread {
    const int count = C::NB == 1 ? 1 : bricks;  // no branches around the products
    Pair<float> s[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) s[j] = Pair<float>(0.0f);
    multiply_across<T, C::DA, C::NB>(s, query, b.a, b.last, count, keys, fr, fc);
    Pair<float> entry[C::NB];  // of rpb
    float top = m;
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        bool sees = b.sees(j, fc, e, seen);
        if (C::MASKED) sees = sees && b.allows(j, fc + e);
        entry[j][e] = 0.0f;
        if (C::RPB && biased && sees) entry[j][e] = rpb[b.bias_at(j, fc, e)];
        const float logit = C::RPB ? fma(s[j][e], scale, entry[j][e] * kLog2E) : s[j][e];
        top = max(top, sees ? logit : kMasked);
      }
    }
    top = row_max(top);
    const float decay = exp2((m - top) * unit);
    m = top;
    l *= decay;
    NA_UNROLL for (int d = 0; d < C::DB / 8; ++d) out.part[d] *= decay;
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        Pair<T> p;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          bool sees = b.sees(j, fc, e, seen);
          if (C::MASKED) sees = sees && b.allows(j, fc + e);
          const float own = C::RPB ? weight_of<true>(s[j][e], scale, entry[j][e], m) : exp2((s[j][e] - m) * scale);
          const float weight = sees ? own : 0.0f;
          l += weight;
          p[e] = T(weight);
        }
        multiply_along<C, T, C::DB>(out.part, p, b.b[j], b.last[j], values, fr, fc, C::MASKED && !b.allows(j, fr));
      }
    }
    if (parts.end(count)) {
      const float since = exp2((m_total - m) * unit);
      out.end_part(since);
      l_total = l_total * since + l;
      l = 0.0f;
      m_total = m;
    }
  }
};

template <typename C>
METAL_FUNC void na_fwd(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                       const device typename C::T* additional_k, const device typename C::T* additional_v,
                       const device float* rpb, const device int* key_mask, const thread Params& prm,
                       device typename C::T* out, device float* lse, threadgroup typename C::T* staged_a,
                       threadgroup typename C::T* staged_b, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  Forward<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  const Slice slice = find_slice<C>(prm, tgid, body.fr);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), slice.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg), body.fr);
  const int dim = patch.channels(int(prm[kDim]));
  const long channel = prm.channel(kQueryStride);
  const device T* q_row = q + row_at(prm, kQueryStride, patch, slice.batch, slice.head);
  const float scale = as_type<float>(int(prm[kScaleBits]));
  const Pair<T> sign = Pair<T>(T(scale < 0.0f ? -1.0f : 1.0f));
  NA_UNROLL for (int d = 0; d < C::DA; d += 8) {
    body.query[d / 8] = sign * load_channels<C::WIDE>(q_row, d + body.fc, dim, channel);
  }
  body.out.clear();
  body.m = body.m_total = kMasked;
  body.l = body.l_total = 0.0f;
  body.parts.bricks = 0;
  body.scale = abs(scale);
  body.unit = C::RPB ? 1.0f : body.scale;
  if (C::RPB) body.rpb = rpb + slice.head * rpb_entries<R>(tile);
  body.biased = false;
  if (C::ADDITIONAL) {
    walk_additional<C>(body, additional_k, additional_v, prm, slice, patch.active, staged_a, staged_b, int(sg),
                       int(lane));
  }
  body.biased = true;
  Sides<C, R> sides = key_sides<C, R>(k, v, prm, kKeyStride, kValueStride, tile, slice, staged_a, staged_b);
  if (C::MASKED) sides.mask = key_mask_of<R>(key_mask, prm, slice.batch);
  walk<C, R, C::MASKED>(body, sides, tile, patch, int(sg), int(lane));
  // Addresses are computed only now: kept during the walk, they would take registers.
  if (C::PART != 0) {
    const float since = exp2((body.m_total - body.m) * body.unit);
    body.out.finish(since);
    body.l += body.l_total * since;
  }
  const float total = row_sum(body.l);
  const bool empty = as_type<uint>(total) == 0u;  // as bits: fast math may drop float comparisons, and NaN is not empty
  if (!patch.store) return;
  device T* to = out + row_at(prm, kOutStride, patch, slice.batch, slice.head);
  write_row<C, C::DB>(to, body.out.part, empty ? 0.0f : 1.0f / total, body.fc, int(prm[kDimV]));
  if (body.fc == 0) {
    lse[row_at(prm, kLseStride, patch, slice.batch, slice.head)] =
        empty ? as_type<float>(kMinusInfinityBits) : (body.m * body.unit + log2(total)) * kLn2;
  }
}

}  // namespace na
