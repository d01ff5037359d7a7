// Fused neighborhood attention, gradient of the queries.
//
//   W[i,j] = exp(scale * q[i].k[j] + bias - lse[i])      P[i,j] = W[i,j] / sum_j W[i,j]
//   dS[i,j] = P[i,j] * (dO[i].v[j] - delta[i])           j in window(i) and all additional keys
//   dQ[i]  = scale * sum_j dS[i,j] k[j]
//   stats[i] = (lse[i] in base 2, 1 / sum_j W[i,j], delta[i], 0)      for na_bwd_dkv.h and na_rpb.h
//
//   dO like out, lse and delta [B, *shape, H] float (na_delta.h), dQ like q, stats [B, *shape, H, 4] float; the other
//   shapes as in na_fwd.h
//   grid and threads as in na_fwd.h: rows are queries, columns keys, A = K, B = V
//
// Three products a brick: S = Q K^T, dP = dO V^T, dQ += dS K. dS may exceed the range of half, so its product is float.
// Where what a row holds would not fit the registers of one simdgroup, a team shares the patch (TEAM, team.h).
// Every dQ row is written once; nothing is summed across threadgroups. Source: FlashAttention-2 (arXiv 2307.08691).
//
// The sum of W would be 1 if lse were exact. It is a float: next to logits of 1e5 it is off by up to 0.004, and so would
// be every weight. So the weights are summed again, which costs one addition, and dQ is divided by the sum at the end.
// A row without weights has lse -inf; stats then hold a number so large that every W is 0.
#pragma once

namespace na {

typedef vec<float, 4> Stats;

template <typename C>
struct QueryGradient {
  typedef typename C::T T;
  static constexpr constant bool SHARED = C::TEAM > 1;
  static constexpr constant int READ = kAcrossA | kAlongA | kAcrossB;
  static constexpr constant int DP = C::DA / C::TEAM;  // channels of the sum (SHARED: of the member's share)
  Pair<T> query[C::DA / 8];  // SHARED: of the member's rows: queries if it is even, else output gradients
  Pair<T> out_grad[SHARED ? 1 : C::DB / 8];
  Sums<DP / 8, C::PART> sum;
  Team<C> team;
  Parts<C::PART> parts;
  float weights;        // this lane's share of the sum of W
  float weights_total;  // of earlier parts
  float lse;            // base 2
  float factor;         // 1 / sum of W, where it is known
  float delta;
  float scale;
  const device float* rpb;
  bool biased;
  int fr;
  int fc;

  // Loads the lane's row: its query and that query's output gradient
  METAL_FUNC void load(const device T* q, const device T* out_grads, const device float* whole_rpb,
                       const thread Params& prm, const thread Tile<C::RANK>& tile, const thread Patch<C::RANK>& patch,
                       Slice slice) thread {
    const device T* q_row = q + row_at(prm, kQueryStride, patch, slice.batch, slice.head);
    const device T* g_row = out_grads + row_at(prm, kOutGradStride, patch, slice.batch, slice.head);
    long q_channel = prm.channel(kQueryStride);
    const long g_channel = prm.channel(kOutGradStride);
    int dim = patch.channels(int(prm[kDim]));
    const int dim_v = patch.channels(int(prm[kDimV]));
    if (SHARED && team.odd) {
      q_row = g_row;
      q_channel = g_channel;
      dim = dim_v;
    }
    NA_UNROLL for (int d = 0; d < C::DA; d += 8) query[d / 8] = load_channels<C::WIDE>(q_row, d + fc, dim, q_channel);
    if (!SHARED) {
      NA_UNROLL for (int d = 0; d < C::DB; d += 8) {
        out_grad[d / 8] = load_channels<C::WIDE>(g_row, d + fc, dim_v, g_channel);
      }
    }
    scale = as_type<float>(int(prm[kScaleBits]));
    biased = true;
    if (C::RPB) rpb = whole_rpb + slice.head * rpb_entries<C::RANK>(tile);
  }

  // dS of a group of bricks, not yet divided by the sum of W; 0 where the row does not see the column
  template <typename Bricks, typename A, typename B>
  METAL_FUNC void logit_gradients(thread Pair<float>* ds, const thread Bricks& b, int count,
                                  const thread A& keys, const thread B& values, Span seen) thread {
    Pair<float> s[C::NB];
    Pair<float> g[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) s[j] = g[j] = Pair<float>(0.0f);
    if (SHARED) {
      typename Bricks::Place at[C::NB];
      NA_UNROLL for (int j = 0; j < C::NB; ++j) at[j] = team.side(b.a[j], b.b[j]);
      const A columns = team.side(keys, values);
      team.template multiply<C::DA>(s, g, query, at, b.last, count, columns, fr, fc);
    } else {
      multiply_across<T, C::DA, C::NB>(s, query, b.a, b.last, count, keys, fr, fc);
      multiply_across<T, C::DB, C::NB>(g, out_grad, b.b, b.last, count, values, fr, fc);
    }
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        bool sees = b.sees(j, fc, e, seen);
        if (C::MASKED) sees = sees && b.allows(j, fc + e);
        float entry = 0.0f;
        if (C::RPB && biased && sees) entry = rpb[b.bias_at(j, fc, e)];
        const float weight = sees ? weight_of<C::RPB>(s[j][e], scale, entry, lse) * factor : 0.0f;
        weights += weight;
        ds[j][e] = sees ? weight * (g[j][e] - delta) : 0.0f;
      }
    }
  }

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int count, const thread A& keys, const thread B& values,
                       Span seen) thread {
    Pair<float> ds[C::NB];
    logit_gradients(ds, b, count, keys, values, seen);
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        const bool hidden = C::MASKED && !b.allows(j, fr);
        multiply_along<C, float, DP>(sum.part, ds[j], b.a[j], b.last[j], keys, fr, fc, hidden, team.first(DP));
      }
    }
    if (parts.end(count)) {
      sum.end_part(1.0f);
      weights_total += weights;
      weights = 0.0f;
    }
  }
};

template <typename C>
METAL_FUNC void na_bwd_dq(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                          const device typename C::T* additional_k, const device typename C::T* additional_v,
                          const device float* rpb, const device int* key_mask,
                          const device typename C::T* out_grad, const device float* lse, const device float* delta,
                          const thread Params& prm, device typename C::T* query_grad, device float* stats,
                          threadgroup typename C::T* staged_a, threadgroup typename C::T* staged_b, uint3 tgid,
                          uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  QueryGradient<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  body.team.join(int(sg), (threadgroup float*)staged_a);
  const Slice slice = find_slice<C>(prm, tgid, body.fr);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), slice.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg) / C::TEAM, body.fr);
  body.load(q, out_grad, rpb, prm, tile, patch, slice);
  const long scalar = row_at(prm, kLseStride, patch, slice.batch, slice.head);
  body.lse = as_type<uint>(lse[scalar]) == kMinusInfinityBits ? -kMasked : lse[scalar] * kLog2E;
  body.delta = delta[scalar];
  body.factor = 1.0f;
  body.sum.clear();
  body.weights = body.weights_total = 0.0f;
  body.parts.bricks = 0;
  body.biased = false;
  if (C::ADDITIONAL) {
    walk_additional<C>(body, additional_k, additional_v, prm, slice, patch.active, staged_a, staged_b, int(sg),
                       int(lane));
  }
  body.biased = true;
  Sides<C, R> sides = key_sides<C, R>(k, v, prm, kKeyStride, kValueStride, tile, slice, staged_a, staged_b);
  if (C::MASKED) sides.mask = key_mask_of<R>(key_mask, prm, slice.batch);
  walk<C, R, C::MASKED>(body, sides, tile, patch, int(sg), int(lane));
  if (C::PART != 0) {
    body.sum.finish(1.0f);
    body.weights += body.weights_total;
  }
  const float total = row_sum(body.weights);
  const float factor = as_type<uint>(total) == 0u ? 0.0f : 1.0f / total;
  if (!patch.store) return;
  device T* to = query_grad + row_at(prm, kQueryGradStride, patch, slice.batch, slice.head);
  constexpr int DP = QueryGradient<C>::DP;
  write_row<C, DP>(to, body.sum.part, body.scale * kLn2 * factor, body.fc, int(prm[kDim]), body.team.first(DP));
  if (body.team.leads() && body.fc == 0) ((device Stats*)stats)[scalar] = Stats(body.lse, factor, body.delta, 0.0f);
}

}  // namespace na
