// Fused neighborhood attention, gradients of the keys and values.
//
//   dV[j] = sum_i P[i,j] dO[i]          dK[j] = scale * sum_i dS[i,j] q[i]        i: the queries whose windows hold j
//   P[i,j] = exp(scale * q[i].k[j] + bias - lse[i]) / (their sum over j)      dS[i,j] = P[i,j] * (dO[i].v[j] - delta[i])
//
//   shapes, and stats (lse, sums of weights, delta), as in na_fwd.h and na_bwd_dq.h; dK like k, dV like v
//   grid of threadgroups: (H_kv, tiles, B * dilation groups); threads per group: NSG * 32
//
// Rows are keys, columns the queries that see them: by the closed-form inverse window they are a box too, so the walk
// is the forward's (coord.h, TRANSPOSED). A = Q, B = dO. The query heads of a key/value head are walked one after
// another and summed in registers, so no result is shared between threadgroups and every row is written once.
// Four products a brick: S = K Q^T, dP = V dO^T, dV += P dO, dK += dS Q.
// Where what a row holds would not fit the registers of one simdgroup, a team shares the patch (TEAM, team.h).
//
// OF_ADDITIONAL: rows are the additional keys instead, and every query is a column. Their tiles are too few to fill a
// GPU, so each is launched kParts times: part `tgid.y % kParts` takes its share of the outermost axis and writes float
// partial sums, for na_sum (na_rpb.h).
#pragma once

namespace na {

// One simdgroup's rows and sums. In a team (team.h) the even member has the keys and dV, the odd one the values and dK.
// That one takes the sides of the walk in exchange, so that both run the same code, and P is rounded as it is otherwise:
//
//   even: S  = K Q^T,  dV += P dO      A = Q,  B = dO
//   odd:  dP = V dO^T, dK += dS Q      A = dO, B = Q
template <typename C>
struct KeyGradient {
  typedef typename C::T T;
  static constexpr constant bool SHARED = C::TEAM > 1;
  // Whether each pair of a row compares with the row's channels, which changes no result: one condition around all loads
  // of a float row made an NVIDIA GPU's assembler use too few registers (benchmarks/gpu)
  static constexpr constant bool EACH = sizeof(T) == 4 && !SHARED;
  static constexpr constant int READ = SHARED ? kAcrossA | kAlongB : kAcrossA | kAlongA | kAcrossB | kAlongB;
  Pair<T> key[C::DA / 8];  // SHARED: the member's rows
  Pair<T> value[SHARED ? 1 : C::DB / 8];
  Sums<C::DA / 8, C::PART> key_sum;  // SHARED: the member's sums
  Sums<SHARED ? 1 : C::DB / 8, C::PART> value_sum;
  Team<C> team;
  Parts<C::PART> parts;
  const device float* stats;  // of the box's first query
  int scalar_step;            // elements of stats between neighbouring queries along x
  float scale;
  const device float* rpb;  // the query head's rpb
  int fr;
  int fc;

  // Loads the lane's row, its key and value, and clears the sums
  METAL_FUNC void load(const device T* k, const device T* v, const thread Params& prm, const thread Tile<C::RANK>& tile,
                       const thread Patch<C::RANK>& patch, int batch, int kv_head, int dim, int dim_v) thread {
    // Additional keys lie along one axis; their stride blocks take the place of the keys'
    constexpr int k_block = C::OF_ADDITIONAL ? int(kAdditionalKeyStride) : int(kKeyStride);
    constexpr int v_block = C::OF_ADDITIONAL ? int(kAdditionalValueStride) : int(kValueStride);
    const device T* k_row = k + row_at(prm, k_block, patch, batch, kv_head);
    const device T* v_row = v + row_at(prm, v_block, patch, batch, kv_head);
    long k_channel = prm.channel(k_block);
    const long v_channel = prm.channel(v_block);
    if (SHARED && team.odd) {
      k_row = v_row;
      k_channel = v_channel;
      dim = dim_v;
    }
    NA_UNROLL for (int d = 0; d < C::DA; d += 8) {
      key[d / 8] = load_channels<C::WIDE>(k_row, d + fc, EACH && d + fc >= dim ? 0 : dim, k_channel);
    }
    if (!SHARED) {
      NA_UNROLL for (int d = 0; d < C::DB; d += 8) {
        value[d / 8] = load_channels<C::WIDE>(v_row, d + fc, EACH && d + fc >= dim_v ? 0 : dim_v, v_channel);
      }
    }
    key_sum.clear();
    value_sum.clear();
    parts.bricks = 0;
    scale = as_type<float>(int(prm[kScaleBits]));
  }

  // The queries of a head as the column side, and where their stats and rpb are
  METAL_FUNC Sides<C, C::RANK> load_head(const device T* q, const device T* out_grad, const device float* all_stats,
                                         const device float* whole_rpb, const thread Params& prm,
                                         const thread Tile<C::RANK>& tile, int batch, int head) thread {
    Sides<C, C::RANK> sides;
    sides.a = columns_of<T, C::RANK>(q, prm, kQueryStride, tile, batch, head);
    sides.b = columns_of<T, C::RANK>(out_grad, prm, kOutGradStride, tile, batch, head);
    const Columns<float, C::RANK> scalars =
        columns_of<float, C::RANK>(all_stats, prm, kLseStride, tile, batch, head);
    NA_UNROLL for (int a = 0; a < C::RANK; ++a) sides.scalar_step[a] = scalars.step[a];
    stats = scalars.box;
    scalar_step = int(scalars.step[C::RANK - 1]);  // stats are contiguous: 4 H times the dilation
    if (C::RPB) rpb = whole_rpb + head * rpb_entries<C::RANK>(tile);
    return sides;
  }

  // The sides of a member's walk
  METAL_FUNC void arrange(thread Sides<C, C::RANK>& sides) const thread {
    if (SHARED && team.odd) {
      const Columns<T, C::RANK> a = sides.a;
      const int dim_a = sides.dim_a;
      sides.a = sides.b;
      sides.dim_a = sides.dim_b;
      sides.b = a;
      sides.dim_b = dim_a;
    }
  }

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int count, const thread A& queries, const thread B& out_grads,
                       Span seen) thread {
    Pair<float> s[C::NB];
    Pair<float> g[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) s[j] = g[j] = Pair<float>(0.0f);
    if (SHARED) {
      team.template multiply<C::DA>(s, g, key, b.a, b.last, count, queries, fr, fc);
    } else {
      multiply_across<T, C::DA, C::NB>(s, key, b.a, b.last, count, queries, fr, fc);
      multiply_across<T, C::DB, C::NB>(g, value, b.b, b.last, count, out_grads, fr, fc);
    }
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        Pair<float> p;
        Pair<float> ds;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const long at = b.scalar_at(j, fc, e, scalar_step);  // read only where the row sees the column
          const bool sees = b.sees(j, fc, e, seen);
          Stats query = Stats(1.0f);  // any value would do: an unseen column is masked
          if (sees) query = *(const device Stats*)(stats + at);
          float entry = 0.0f;
          if (C::RPB && sees) entry = rpb[b.bias_at(j, fc, e)];
          p[e] = sees ? weight_of<C::RPB>(s[j][e], scale, entry, query[0]) * query[1] : 0.0f;
          ds[e] = sees ? p[e] * (g[j][e] - query[2]) : 0.0f;
        }
        const Pair<T> weight = Pair<T>(T(p[0]), T(p[1]));
        if (SHARED) {  // B is the side of the member's own sum
          const Pair<float> own = team.odd ? ds : Pair<float>(float(weight[0]), float(weight[1]));
          multiply_along<C, float, C::DA>(key_sum.part, own, b.b[j], b.last[j], out_grads, fr, fc, false);
        } else {
          multiply_along<C, T, C::DB>(value_sum.part, weight, b.b[j], b.last[j], out_grads, fr, fc, false);
          multiply_along<C, float, C::DA>(key_sum.part, ds, b.a[j], b.last[j], queries, fr, fc, false);
        }
      }
    }
    if (parts.end(count)) {
      key_sum.end_part(1.0f);
      value_sum.end_part(1.0f);
    }
  }

  // hidden: the row counts as zeros
  METAL_FUNC void finish(bool hidden) thread {
    key_sum.finish(1.0f);
    value_sum.finish(1.0f);
    if (hidden) {
      key_sum.clear();
      value_sum.clear();
    }
  }

  template <typename R>
  METAL_FUNC void write(device R* key_grad, device R* value_grad, int dim, int dim_v) const thread {
    if (C::TEAM > 1 && !team.odd) {
      write_row<C, C::DA>(value_grad, key_sum.part, 1.0f, fc, dim_v);
      return;
    }
    write_row<C, C::DA>(key_grad, key_sum.part, scale * kLn2, fc, dim);
    if (C::TEAM == 1) write_row<C, C::DB>(value_grad, value_sum.part, 1.0f, fc, dim_v);
  }
};

// The tile of an OF_ADDITIONAL launch: rows are additional keys, which lie along one axis; the box is this part's share
// of all queries at hand, whose positions count from the first of them
template <typename C>
METAL_FUNC void find_additional(thread Tile<C::RANK>& t, thread Patch<C::RANK>& patch, const thread Params& prm,
                                int tile, int part, int sg, int fragment_row) {
  constexpr int X = C::RANK - 1;
  const int rows = int(prm[kAdditional]);
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) {
    const int queries = int(prm[kQueryShape + a]);
    t.axis[a] = {queries, {0, 1}, {0, queries}, 1, 1, false};
    t.row_origin[a] = t.column_origin[a] = t.corner[a] = 0;
    t.step[a] = 1;
    t.box[a] = t.axis[a].columns;
    patch.row[a] = patch.token[a] = 0;
  }
  const int parts = int(prm[kParts]);
  t.box[0].low = int(long(t.axis[0].n) * part / parts);
  t.box[0].high = int(long(t.axis[0].n) * (part + 1) / parts);
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) patch.common[a] = patch.seen[a] = t.box[a];
  patch.x = t.box[X];
  const int first = (tile * C::NSG + sg) * 8;
  patch.active = first < rows;
  patch.store = first + fragment_row < rows;
  patch.row[0] = patch.token[0] = min(first + fragment_row, rows - 1);
}

template <typename C>
METAL_FUNC void na_bwd_dkv(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                           const device float* rpb, const device int* key_mask,
                           const device typename C::T* out_grad, const device float* stats,
                           const thread Params& prm, device typename C::R* key_grad, device typename C::R* value_grad,
                           threadgroup typename C::T* staged_a, threadgroup typename C::T* staged_b, uint3 tgid,
                           uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  KeyGradient<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  body.team.join(int(sg), (threadgroup float*)staged_a);
  int groups = 1;
  NA_UNROLL for (int a = 0; a < R; ++a) groups *= C::OF_ADDITIONAL ? 1 : int(prm[kDilation + a]);
  const int batch = int(tgid.z) / groups;
  const int kv_head = int(tgid.x);
  const int parts = C::OF_ADDITIONAL ? int(prm[kParts]) : 1;
  const int part = int(tgid.y) % parts;
  Tile<R> tile;
  Patch<R> patch;
  if (C::OF_ADDITIONAL) {
    find_additional<C>(tile, patch, prm, int(tgid.y) / parts, part, int(sg), body.fr);
  } else {
    if (!find_tile<C>(tile, prm, int(tgid.y), int(tgid.z) % groups)) return;  // uniform, before any barrier
    find_patch<C>(patch, tile, int(sg) / C::TEAM, body.fr);
  }
  const int dim = int(prm[kDim]);
  const int dim_v = int(prm[kDimV]);
  bool hidden = false;  // a masked key holds zeros, like a row that does not exist, and its gradients are 0
  if (C::MASKED) {
    const KeyMask<R> mask = key_mask_of<R>(key_mask, prm, batch);
    hidden = patch.store && !mask.allows(patch.token);
  }
  body.load(k, v, prm, tile, patch, batch, kv_head, hidden ? 0 : patch.channels(dim),
            hidden ? 0 : patch.channels(dim_v));
  const int group_heads = int(prm[kGroupHeads]);
  for (int h = 0; h < group_heads; ++h) {
    const int head = kv_head * group_heads + h;
    Sides<C, R> sides = body.load_head(q, out_grad, stats, rpb, prm, tile, batch, head);
    sides.staged_a = staged_a;
    sides.staged_b = staged_b;
    sides.dim_a = dim;
    sides.dim_b = dim_v;
    body.arrange(sides);
    walk<C, R, false>(body, sides, tile, patch, int(sg), int(lane));
  }
  body.finish(hidden);
  if (!patch.store) return;
  long k_at = row_at(prm, kKeyGradStride, patch, batch, kv_head);
  long v_at = row_at(prm, kValueGradStride, patch, batch, kv_head);
  if (C::OF_ADDITIONAL) {  // the parts of a result lie one after another
    k_at += part * prm[kKeyGradPart];
    v_at += part * prm[kValueGradPart];
  }
  body.write(key_grad + k_at, value_grad + v_at, dim, dim_v);
}

}  // namespace na
