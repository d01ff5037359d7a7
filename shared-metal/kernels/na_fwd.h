// Fused neighborhood attention, forward.
//
//   out[i] = sum_j P[i,j] v[j],  P[i,:] = softmax_j(scale * q[i].k[j] + bias),  j in window(i) and all additional keys
//   lse[i] = log sum_j exp(scale * q[i].k[j] + bias)                             natural logarithm
//
//   q [B, *shape, H, D]   k [B, *shape, H_kv, D]   v [B, *shape, H_kv, D_v]   additional: [B, S, H_kv, D(_v)]
//   out [B, *shape, H, D_v]   lse [B, *shape, H] float   any strides (params.h)   bias [H, 2w - 1 per axis] float
//   grid of threadgroups: (H / HR, tiles, B * dilation groups); threads per group: NSG * 32
//
// Rows are queries (coord.h has the picture), columns are keys: A = K, B = V (stage.h). Additional keys come first, as
// a box of rank 1. Per group of NB bricks: S = Q K^T, mask where partial, online softmax, O += P V.
//
// Masked logits are kMasked, a finite number: exp2(kMasked - m) is 0 once a row has met a key, and whatever a row
// collected before that is wiped by the factor exp2(kMasked - m) = 0. Nothing is ever -inf or NaN of our making, so
// fast math is safe. Source: FlashAttention (arXiv 2205.14135) for the online softmax.
#pragma once

namespace na {

// One patch: its query rows, un-normalised outputs, row maximum (base 2), this lane's part of the row sum
template <typename C>
struct Forward {
  typedef typename C::T T;
  Pair<T> query[C::DA / 8];
  Pair<float> out[C::DB / 8];
  float m;
  float l;
  float scale;
  const device float* table;  // the row's head's bias
  bool biased;                // uniform: off for additional keys
  int fr;
  int fc;

  template <typename At, typename A, typename B>
  METAL_FUNC void take(const thread Bricks<C::NB, At>& b, int count, const thread A& keys, const thread B& values,
                       Span seen) thread {
    Pair<float> s[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) s[j] = Pair<float>(0.0f);
    multiply_across<T, C::DA, C::NB>(s, query, b.a, b.last, count, keys, fr, fc);
    float top = m;
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      s[j] *= scale;
      const bool first = b.full[j] || b.sees(j, b.x[j] + fc, seen);
      const bool second = b.full[j] || b.sees(j, b.x[j] + fc + 1, seen);
      if (C::BIAS && biased) {
        if (first) s[j][0] += table[b.bias[j] + fc] * kLog2E;
        if (second) s[j][1] += table[b.bias[j] + fc + 1] * kLog2E;
      }
      if (!b.full[j]) {  // uniform
        s[j][0] = first ? s[j][0] : kMasked;
        s[j][1] = second ? s[j][1] : kMasked;
      }
      top = max(top, max(s[j][0], s[j][1]));
    }
    top = row_max(top);
    const float decay = exp2(m - top);
    m = top;
    l *= decay;
    NA_UNROLL for (int d = 0; d < C::DB / 8; ++d) out[d] *= decay;
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        const float p0 = exp2(s[j][0] - m);
        const float p1 = exp2(s[j][1] - m);
        l += p0 + p1;
        const Pair<T> p = Pair<T>(T(p0), T(p1));
        NA_UNROLL for (int d = 0; d < C::DB; d += 8) {
          mma<T>(out[d / 8], p, values.along(b.b[j], fr, d + fc, b.last[j]));
        }
      }
    }
  }
};

template <typename C>
METAL_FUNC void na_fwd(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                       const device typename C::T* extra_k, const device typename C::T* extra_v,
                       const device float* bias, const thread Params& prm, device typename C::T* out, device float* lse,
                       threadgroup typename C::T* staged_a, threadgroup typename C::T* staged_b, uint3 tgid, uint sg,
                       uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  Forward<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  const Place place = find_place<C>(prm, tgid, body.fr);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), place.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg), body.fr);
  const int dim = patch.channels(int(prm[kDim]));
  const long channel = prm.channel(kQueryStride);
  const device T* q_row = q + token_offset<R>(prm, kQueryStride, tile, place.batch, place.head, patch.row);
  NA_UNROLL for (int d = 0; d < C::DA; d += 8) body.query[d / 8] = load_channels(q_row, d + body.fc, dim, channel);
  NA_UNROLL for (int d = 0; d < C::DB / 8; ++d) body.out[d] = Pair<float>(0.0f);
  body.m = kMasked;
  body.l = 0.0f;
  body.scale = as_type<float>(int(prm[kScaleBits]));
  if (C::BIAS) body.table = bias + place.head * bias_entries<R>(tile);
  body.biased = false;
  if (C::EXTRA) {
    walk_additional<C>(body, extra_k, extra_v, prm, place, patch.active, staged_a, staged_b, int(sg), int(lane));
  }
  body.biased = true;
  const Sides<C, R> sides = key_sides<C, R>(k, v, prm, kKeyStride, kValueStride, tile, place, staged_a, staged_b);
  walk<C, R>(body, sides, tile, patch, int(sg), int(lane));
  // Addresses only now: held over the loop they would cost registers.
  const float total = row_sum(body.l);
  if (!patch.store) return;
  device T* to = out + token_offset<R>(prm, kOutStride, tile, place.batch, place.head, patch.row);
  write_row<T, C::DB>(to, body.out, 1.0f / total, body.fc, int(prm[kDimV]));
  if (body.fc == 0) {
    lse[token_offset<R>(prm, kLseStride, tile, place.batch, place.head, patch.row)] = (body.m + log2(total)) * kLn2;
  }
}

}  // namespace na
