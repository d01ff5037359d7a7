// Which slice of the problem a threadgroup works on, and the tensors on the column side of its walk.
#pragma once

namespace na {

constant constexpr float kMasked = -1.7014117e38f;  // -FLT_MAX / 2
constant constexpr float kLog2E = 1.44269504f;
constant constexpr float kLn2 = 0.693147181f;
constant constexpr uint kMinusInfinityBits = 0xff800000u;

// The weight of a pair before it is divided by the sum of its row: exp2(s * scale + bias * log2(e) - top), with scale and
// top in base 2. s is a float sum over the channels in order, the same in every kernel. The explicit fma rounds once,
// whatever the compiler would fuse otherwise: next to logits of 1e5 a rounded s * scale is off by 0.004.
template <bool RPB>
METAL_FUNC float weight_of(float s, float scale, float bias, float top) {
  return exp2(fma(s, scale, RPB ? fma(bias, kLog2E, -top) : -top));
}

// The additional keys of a batch item, as a box of rank 1 that every row sees in full
METAL_FUNC void additional_box(thread Tile<1>& t, thread Patch<1>& patch, int count, bool active) {
  const Span all = {0, count};
  t.axis[0] = {count, {0, 1}, all, count, 1, false};
  t.step[0] = 1;
  t.row_origin[0] = t.column_origin[0] = t.corner[0] = 0;
  t.box[0] = all;
  patch.x = patch.common[0] = patch.seen[0] = all;
  patch.row[0] = patch.token[0] = 0;
  patch.active = active;
  patch.store = false;
}

// The part of the problem that a threadgroup works on, apart from its tile
struct Slice {
  int batch;
  int group;    // dilation group, all axes
  int head;     // the lane's own query head
  int kv_head;
};

template <typename C>
METAL_FUNC Slice find_slice(const thread Params& prm, uint3 tgid, int fragment_row) {
  int groups = 1;
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) groups *= int(prm[kDilation + a]);
  Slice slice;
  const Ratio item = divide(int(tgid.z), groups);
  slice.batch = item.quotient;
  slice.group = item.rest;
  slice.head = int(tgid.x) * C::HR + fragment_row % C::HR;
  slice.kv_head = divide(int(tgid.x) * C::HR, int(prm[kGroupHeads])).quotient;
  return slice;
}

// Keys and values as the column side; a key mask is set separately
template <typename C, int RANK>
METAL_FUNC Sides<C, RANK> key_sides(const device typename C::T* k, const device typename C::T* v,
                                    const thread Params& prm, int key_block, int value_block,
                                    const thread Tile<RANK>& tile, Slice slice, threadgroup typename C::T* staged_a,
                                    threadgroup typename C::T* staged_b) {
  Sides<C, RANK> sides;
  sides.a = columns_of<typename C::T, RANK>(k, prm, key_block, tile, slice.batch, slice.kv_head);
  sides.b = columns_of<typename C::T, RANK>(v, prm, value_block, tile, slice.batch, slice.kv_head);
  sides.staged_a = staged_a;
  sides.staged_b = staged_b;
  sides.dim_a = int(prm[kDim]);
  sides.dim_b = int(prm[kDimV]);
  return sides;
}

// Walks a body over the additional keys and values
template <typename C, typename Body>
METAL_FUNC void walk_additional(thread Body& body, const device typename C::T* keys, const device typename C::T* values,
                                const thread Params& prm, Slice slice, bool active, threadgroup typename C::T* staged_a,
                                threadgroup typename C::T* staged_b, int sg, int lane) {
  Tile<1> tile;
  Patch<1> patch;
  additional_box(tile, patch, int(prm[kAdditional]), active);
  const Sides<C, 1> sides =
      key_sides<C, 1>(keys, values, prm, kAdditionalKeyStride, kAdditionalValueStride, tile, slice, staged_a, staged_b);
  walk<C, 1, false>(body, sides, tile, patch, sg, lane);
}

// Entries of one head's rpb
template <int RANK>
METAL_FUNC int rpb_entries(const thread Tile<RANK>& t) {
  int entries = 1;
  NA_UNROLL for (int a = 0; a < RANK; ++a) entries *= 2 * t.axis[a].w - 1;
  return entries;
}

}  // namespace na
