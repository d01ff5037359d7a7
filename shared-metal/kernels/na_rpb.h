// Gradient of the relative positional bias: sums of dS over all pairs of equal offset (key - query).
//
//   rpb_grad[h, offset] = sum over batch, queries i and keys j with j - i = offset of dS[i,j]
//
//   dS is recomputed as in na_bwd_dq.h, or read from the slots of logits_grad (SLOTS: the gradient of na_qk)
//   grid of threadgroups: (H, parts, 1); threads per group: NSG * 32; HR is 1
//   partial [parts, H, 2w - 1 per axis] float, summed in order by na_sum
//
// A threadgroup takes every parts-th tile. Each simdgroup adds to a table of its own in threadgroup memory, one row of
// an 8x8 fragment at a time: the columns of a row have different offsets, so lanes never add to the same entry, and the
// order of the sums never changes. TABLE: entries that one table can hold.
#pragma once

namespace na {

template <typename C>
struct RpbGradient {
  typedef typename C::T T;
  static constexpr constant int READ = C::SLOTS ? 0 : kAcrossA | kAcrossB;
  QueryGradient<C> rows;        // logits and their gradients, as for dQ; its sum stays unused
  const device T* logits_grad;  // of the lane's row (SLOTS)
  long channel;                 // elements between two of its slots
  threadgroup float* sums;      // the simdgroup's table
  bool store;
  int fr;
  int fc;

  template <typename Bricks, typename A, typename B>
  METAL_FUNC void take(const thread Bricks& b, int count, const thread A& keys, const thread B& values,
                       Span seen) thread {
    Pair<float> ds[C::NB];
    if (C::SLOTS) {
      NA_UNROLL for (int j = 0; j < C::NB; ++j) {
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const bool sees = j < count && b.sees(j, fc, e, seen);
          ds[j][e] = sees ? float(logits_grad[(b.slot_at(j, fc, e)) * channel]) : 0.0f;
        }
      }
    } else {
      rows.logit_gradients(ds, b, count, keys, values, seen);
    }
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      if (j < count) {  // uniform
        for (int r = 0; r < 8; ++r) {
          NA_UNROLL for (int e = 0; e < 2; ++e) {
            const bool sees = b.sees(j, fc, e, seen);
            if (r == fr && store && sees) sums[b.bias_at(j, fc, e)] += ds[j][e];
          }
          simdgroup_barrier(mem_flags::mem_threadgroup);
        }
      }
    }
  }
};

template <typename C>
METAL_FUNC void na_rpb(const device typename C::T* q, const device typename C::T* k, const device typename C::T* v,
                        const device float* rpb, const device int* key_mask, const device typename C::T* out_grad,
                        const device float* stats, const device typename C::T* logits_grad, const thread Params& prm,
                        device float* partial, threadgroup float* tables, uint3 tgid, uint sg, uint lane) {
  typedef typename C::T T;
  constexpr int R = C::RANK;
  RpbGradient<C> body;
  body.fr = body.rows.fr = fragment_row(lane);
  body.fc = body.rows.fc = fragment_col(lane);
  body.sums = tables + int(sg) * C::TABLE;
  int entries = 1;
  int groups = 1;
  int tiles = 1;
  NA_UNROLL for (int a = 0; a < R; ++a) {
    entries *= int(2 * prm[kWindow + a] - 1);
    groups *= int(prm[kDilation + a]);
    tiles *= int(prm[kTiles + a]);
  }
  for (int e = int(lane); e < entries; e += 32) body.sums[e] = 0.0f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const int head = int(tgid.x);
  for (int at = int(tgid.y); at < tiles * groups * int(prm[kBatch]); at += int(prm[kParts])) {
    const int batch = at / (tiles * groups);
    const Slice slice = {batch, at / tiles % groups, head, head / int(prm[kGroupHeads])};
    Tile<R> tile;
    Patch<R> patch;
    if (!find_tile<C>(tile, prm, at % tiles, slice.group)) continue;  // uniform
    find_patch<C>(patch, tile, int(sg), body.fr);
    body.store = patch.store;
    if (C::SLOTS) {
      body.channel = prm.channel(kOutGradStride);
      body.logits_grad = logits_grad + row_at(prm, kOutGradStride, patch, batch, head);
    } else {
      body.rows.load(q, out_grad, rpb, prm, tile, patch, slice);
      const long own_at = row_at(prm, kLseStride, patch, batch, head);
      const Stats own = *(const device Stats*)(stats + own_at);
      body.rows.lse = own[0];
      body.rows.factor = own[1];
      body.rows.delta = own[2];
    }
    Sides<C, R> sides = key_sides<C, R>(k, v, prm, kKeyStride, kValueStride, tile, slice, nullptr, nullptr);
    if (C::MASKED) sides.mask = key_mask_of<R>(key_mask, prm, batch);
    walk<C, R, C::MASKED>(body, sides, tile, patch, int(sg), int(lane));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int e = int(sg * 32 + lane); e < entries; e += C::NSG * 32) {
    float sum = 0.0f;
    for (int g = 0; g < C::NSG; ++g) sum += tables[g * C::TABLE + e];
    partial[(long(tgid.y) * prm[kHeads] + head) * entries + e] = sum;
  }
}

// Sums the parts of a result in order: out[i] = sum_p partial[p * count + i]; one thread an element, 256 a threadgroup
template <typename C>
METAL_FUNC void na_sum(const device float* partial, const thread Params& prm, device typename C::T* out, uint3 tgid,
                       uint sg, uint lane) {
  const long at = long(tgid.x) * 256 + long(sg * 32 + lane);
  if (at >= prm[kRowCount]) return;
  float sum = 0.0f;
  for (int p = 0; p < int(prm[kParts]); ++p) sum += partial[p * prm[kRowCount] + at];
  out[at] = typename C::T(sum);
}

}  // namespace na
