// The split operations: logits of window slots, and weights of window slots times values.
//
//   na_qk     logits[i, slot] = scale * q[i].k[j] + bias        j the key of the slot; `empty` where it holds none
//   na_av     out[i] = factor * sum_slot attn[i, slot] v[j]
//   na_av_t   out[j] = factor * sum_i attn[i, slot of j] x[i]   i: the queries whose windows hold j
//
//   slots are row-major over the window, slot s of an axis is the key at start + s; attn, logits [B, *shape, H, W]
//   grids: (H / HR, tiles, B * dilation groups), for na_av_t (H_kv, ...); threads per group: NSG * 32
//
// The gradients are these same three: of qk, dQ is na_av of (logits_grad, K) and dK is na_av_t of (logits_grad, Q),
// with factor = scale; of av, attn_grad is na_qk of (dO, V) with empty slots 0, and dV is na_av_t of (attn, dO).
// Slots that hold no key are never read, whatever they contain. attn's strides are in the block of q (kQueryStride).
#pragma once

namespace na {

// --- logits ------------------------------------------------------------------------------------------------

template <typename C>
struct Logits {
  typedef typename C::T T;
  static constexpr constant int READ = kAcrossA;
  Pair<T> query[C::DA / 8];
  device T* logits;  // of the lane's row
  float scale;       // natural base
  const device float* rpb;
  bool store;
  int fr;
  int fc;

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int count, const thread A& keys, const thread B& unused,
                       Span seen) thread {
    Pair<float> s[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) s[j] = Pair<float>(0.0f);
    multiply_across<T, C::DA, C::NB>(s, query, b.a, b.last, count, keys, fr, fc);
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        if (j < count && store && b.sees(j, fc, e, seen)) {
          const float bias = C::RPB ? rpb[b.bias_at(j, fc, e)] : 0.0f;
          logits[b.slot_at(j, fc, e)] = T(s[j][e] * scale + bias);
        }
      }
    }
  }
};

// Fills the slots that hold no key, which only causal rows near the beginning have. The four lanes of a row share the
// work.
template <typename C>
METAL_FUNC void fill_empty_slots(device typename C::T* logits, const thread Tile<C::RANK>& t,
                                 const thread Patch<C::RANK>& patch, int fc) {
  int slots = 1;
  bool whole = true;
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) {
    slots *= t.axis[a].w;
    whole = whole && patch.seen[a].high - patch.seen[a].low == t.axis[a].w;
  }
  if (whole) return;
  for (int slot = fc / 2; slot < slots; slot += 4) {
    bool holds = true;
    int rest = slot;
    NA_UNROLL for (int a = C::RANK - 1; a >= 0; --a) {
      holds = holds && patch.seen[a].low + rest % t.axis[a].w < patch.seen[a].high;
      rest /= t.axis[a].w;
    }
    if (!holds) logits[slot] = typename C::T(C::EMPTY_ZERO ? 0.0f : as_type<float>(kMinusInfinityBits));
  }
}

template <typename C>
METAL_FUNC void na_qk(const device typename C::T* q, const device typename C::T* k, const device float* rpb,
                      const thread Params& prm, device typename C::T* logits, threadgroup typename C::T* staged_a,
                      threadgroup typename C::T* staged_b, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  Logits<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  const Slice slice = find_slice<C>(prm, tgid, body.fr);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), slice.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg), body.fr);
  const device T* q_row = q + row_at(prm, kQueryStride, patch, slice.batch, slice.head);
  const int dim = patch.channels(int(prm[kDim]));
  NA_UNROLL for (int d = 0; d < C::DA; d += 8) {
    body.query[d / 8] = load_channels<C::WIDE>(q_row, d + body.fc, dim, prm.channel(kQueryStride));
  }
  body.logits = logits + row_at(prm, kOutStride, patch, slice.batch, slice.head);
  body.scale = as_type<float>(int(prm[kScaleBits])) * kLn2;
  body.store = patch.store;
  if (C::RPB) body.rpb = rpb + slice.head * rpb_entries<R>(tile);
  Sides<C, R> sides;
  sides.a = columns_of<T, R>(k, prm, kKeyStride, tile, slice.batch, slice.kv_head);
  sides.b = sides.a;
  sides.staged_a = staged_a;
  sides.staged_b = staged_b;
  sides.dim_a = int(prm[kDim]);
  sides.dim_b = 0;
  walk<C, R, false>(body, sides, tile, patch, int(sg), int(lane));
  if (patch.store) fill_empty_slots<C>(body.logits, tile, patch, body.fc);
}

// --- weights times values ----------------------------------------------------------------------------------

template <typename C>
struct WeighKeys {
  typedef typename C::T T;
  static constexpr constant int READ = kAlongB;
  Sums<C::DB / 8, C::PART> sum;
  Parts<C::PART> parts;
  const device T* weights;  // of the lane's row
  long channel;             // elements between two slots
  int fr;
  int fc;

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int bricks, const thread A& unused, const thread B& values,
                       Span seen) thread {
    const int count = C::NB == 1 ? 1 : bricks;  // no branches around the products
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        Pair<T> p;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const bool sees = b.sees(j, fc, e, seen);
          p[e] = sees ? weights[(b.slot_at(j, fc, e)) * channel] : T(0);
        }
        multiply_along<C, T, C::DB>(sum.part, p, b.b[j], b.last[j], values, fr, fc, false);
      }
    }
    if (parts.end(count)) sum.end_part(1.0f);
  }
};

template <typename C>
METAL_FUNC void na_av(const device typename C::T* attn, const device typename C::T* v, const thread Params& prm,
                      device typename C::T* out, threadgroup typename C::T* staged_a,
                      threadgroup typename C::T* staged_b, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  WeighKeys<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  const Slice slice = find_slice<C>(prm, tgid, body.fr);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), slice.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg), body.fr);
  body.channel = prm.channel(kQueryStride);
  body.weights = attn + row_at(prm, kQueryStride, patch, slice.batch, slice.head);
  body.sum.clear();
  body.parts.bricks = 0;
  Sides<C, R> sides;
  sides.b = columns_of<T, R>(v, prm, kValueStride, tile, slice.batch, slice.kv_head);
  sides.a = sides.b;
  sides.staged_a = staged_a;
  sides.staged_b = staged_b;
  sides.dim_a = 0;
  sides.dim_b = int(prm[kDimV]);
  walk<C, R, false>(body, sides, tile, patch, int(sg), int(lane));
  body.sum.finish(1.0f);
  if (!patch.store) return;
  device T* to = out + row_at(prm, kOutStride, patch, slice.batch, slice.head);
  write_row<C, C::DB>(to, body.sum.part, as_type<float>(int(prm[kScaleBits])) * kLn2, body.fc, int(prm[kDimV]));
}

// --- weights times queries ---------------------------------------------------------------------------------

template <typename C>
struct WeighQueries {
  typedef typename C::T T;
  static constexpr constant int READ = kAlongB;
  Sums<C::DB / 8, C::PART> sum;
  Parts<C::PART> parts;
  const device T* weights;  // of the box's first query
  long channel;             // elements between two slots
  long scalar_step;         // elements between the weights of neighbouring queries along x
  Axis x;
  int row_x;                // the lane's key
  int fr;
  int fc;

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int count, const thread A& unused, const thread B& tokens,
                       Span seen) thread {
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {
        Pair<T> p;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const bool sees = b.sees(j, fc, e, seen);
          const long at = b.scalar_at(j, fc, e, scalar_step) + b.slot_in(j, fc, e, x, row_x) * channel;
          p[e] = sees ? weights[at] : T(0);
        }
        multiply_along<C, T, C::DB>(sum.part, p, b.b[j], b.last[j], tokens, fr, fc, false);
      }
    }
    if (parts.end(count)) sum.end_part(1.0f);
  }
};

template <typename C>
METAL_FUNC void na_av_t(const device typename C::T* attn, const device typename C::T* x, const thread Params& prm,
                        device typename C::T* out, threadgroup typename C::T* staged_a,
                        threadgroup typename C::T* staged_b, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  WeighQueries<C> body;
  body.fr = fragment_row(lane);
  body.fc = fragment_col(lane);
  const int group_heads = int(prm[kGroupHeads]);
  Slice slice = find_slice<C>(prm, tgid, body.fr);
  slice.kv_head = int(tgid.x);
  Tile<R> tile;
  Patch<R> patch;
  if (!find_tile<C>(tile, prm, int(tgid.y), slice.group)) return;  // uniform, before any barrier
  find_patch<C>(patch, tile, int(sg), body.fr);
  body.x = tile.axis[R - 1];
  body.row_x = patch.row[R - 1];
  body.sum.clear();
  body.parts.bricks = 0;
  for (int h = 0; h < group_heads; ++h) {
    const int head = slice.kv_head * group_heads + h;
    Sides<C, R> sides;
    sides.b = columns_of<T, R>(x, prm, kValueStride, tile, slice.batch, head);
    sides.a = sides.b;
    const Columns<T, R> slots = columns_of<T, R>(attn, prm, kQueryStride, tile, slice.batch, head);
    NA_UNROLL for (int a = 0; a < R; ++a) sides.scalar_step[a] = slots.step[a];
    body.weights = slots.box;
    body.channel = slots.channel;
    body.scalar_step = slots.step[R - 1];
    sides.staged_a = staged_a;
    sides.staged_b = staged_b;
    sides.dim_a = 0;
    sides.dim_b = int(prm[kDimV]);
    walk<C, R, false>(body, sides, tile, patch, int(sg), int(lane));
  }
  body.sum.finish(1.0f);
  if (!patch.store) return;
  device T* to = out + row_at(prm, kOutStride, patch, slice.batch, slice.kv_head);
  write_row<C, C::DB>(to, body.sum.part, as_type<float>(int(prm[kScaleBits])) * kLn2, body.fc, int(prm[kDimV]));
}

}  // namespace na
