// The walk where bricks are products of the matrix units (mpp.h): 16 rows, 16 columns, read where they lie or gathered.
//
// Tiles, patches and boxes are those of coord.h, with 16 rows to a patch. Lane r and lane r + 16 know row r of the
// patch; of the columns of a brick, lane c and lane c + 16 know column c. A simdgroup works for itself: it has memory
// of its own in the threadgroup, and meets no other.
//
//   run    16 columns in one row along x, read where they lie. A product reads all 16, so the last brick of a row is
//          moved back until it ends with the box, and the columns that its neighbour had are masked. If the box is
//          shorter than a brick, the brick begins before it, or ends behind: a dilation group must have 16 columns at
//          hand. All of them count as columns of the box: a NaN there may reach the patch's rows.
//   flat   columns of the box row after row (flat.h), gathered into threadgroup memory, with zeros behind the last.
//          Additional keys, and all of rank 1, are gathered row by row.
//
// What rows see of a brick is a word for each row: bit c stands for column c.
#pragma once

namespace na {

// One side of a brick
template <typename T>
struct WideSide {
  const device T* box;
  long at;       // element offset from there: of the lane's own column; where they are not gathered, of the first one
  long step;     // elements between two columns, where they are not gathered
  long channel;
};

template <typename T>
struct WideBrick {
  WideSide<T> a;
  WideSide<T> b;
  long scalar;  // TRANSPOSED: the lane's column in the tensor of stats
  int count;    // columns that exist
  uint seen;    // by the lane's row
};

// Bits [low, high) of the 16 of a brick
METAL_FUNC uint bits_between(int low, int high) {
  const uint upto = (1u << clamp(high, 0, kSide)) - 1u;
  return upto & ~((1u << clamp(low, 0, kSide)) - 1u);
}

// The elements of a brick whose row sees their column. seen: by the lane's own row
template <typename S>
METAL_FUNC uint seen_in_brick(thread S& s, uint elements, uint seen, int lane) {
  const bool full = simd_all(seen == (1u << kSide) - 1u);
  NA_COUNT(full_brick, full && lane == 0);
  NA_COUNT(partial_brick, !full && lane == 0);
  return full ? elements : seen_elements(s, elements, seen);
}

// What a simdgroup has of threadgroup memory: C::SHARED bytes
template <typename C>
struct WideMemory {
  threadgroup typename C::T* rows_a;   // the patch's rows, of both sides
  threadgroup typename C::T* rows_b;
  threadgroup typename C::T* columns;  // FLAT: those of a brick, of one side at a time
  threadgroup float* weights;          // a brick's
  threadgroup float* line;             // a value for each row

  METAL_FUNC void find(threadgroup uint4* shared, uint sg, bool both) thread {
    threadgroup char* own = (threadgroup char*)shared + sg * C::SHARED;
    weights = (threadgroup float*)own;
    line = weights + kSide * kSide;
    rows_a = (threadgroup typename C::T*)(line + kSide);
    rows_b = rows_a + kSide * C::DA;
    columns = rows_b + (both ? kSide * C::DB : 0);
  }
};

// Copies 16 tokens to threadgroup memory of the simdgroup; zeros for those that do not exist. at, exists: of the token
// that is the lane's own
template <typename C, int DP>
METAL_FUNC void collect(threadgroup typename C::T* to, const device typename C::T* from, long at, bool exists, int dim,
                        long channel, int lane) {
  typedef TokenCopy<typename C::T, DP, C::WIDE> Copy;
  simdgroup_barrier(mem_flags::mem_threadgroup);  // what was there has been used
  NA_UNROLL for (int first = 0; first < kSide; first += 32 / Copy::LANES) {
    const int token = first + lane / Copy::LANES;
    const long source = from_lane(at, token);
    if (simd_shuffle(uint(exists), ushort(token)) != 0u) {
      Copy::copy(to + token * DP, from + source, dim, channel, lane % Copy::LANES);
    } else {
      Copy::clear(to + token * DP, lane % Copy::LANES);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

// The depth of a product over DP channels (Across)
template <typename C, int DP>
METAL_FUNC constexpr int depth() {
  return C::WIDE || C::FLAT ? DP : 0;
}

// The patch's rows of a tensor, copied; zeros for those that do not exist
template <typename C, int DP>
METAL_FUNC Near<typename C::T> patch_rows(threadgroup typename C::T* to, const device typename C::T* from,
                                          const thread Params& prm, int block, const thread Patch<C::RANK>& patch,
                                          int batch, int head, int dim, int lane) {
  collect<C, DP>(to, from, row_at(prm, block, patch, batch, head), patch.store, dim, prm.channel(block), lane);
  return near_view(to, depth<C, DP>() == 0 ? dim : DP, DP);
}

// Where products read the columns of a brick
template <typename C, bool FLAT = C::FLAT>
struct WideSource {
  typedef typename C::T T;
  typedef Far<T> View;
  template <int DP>
  static METAL_FUNC View view(threadgroup T* columns, WideSide<T> side, int count, int dim, int lane) {
    return far_view(side.box + side.at, dim, int(side.step));
  }
};
template <typename C>
struct WideSource<C, true> {
  typedef typename C::T T;
  typedef Near<T> View;
  template <int DP>
  static METAL_FUNC View view(threadgroup T* columns, WideSide<T> side, int count, int dim, int lane) {
    collect<C, DP>(columns, side.box, side.at, lane % kSide < count, dim, side.channel, lane);
    return near_view(columns, DP, DP);
  }
};

// Bricks in rows of their own, in order
template <typename C, int RANK, bool RUN_ON>
struct WideCursor {
  RunCursor<RANK> next;

  METAL_FUNC int begin(const thread Tile<RANK>& t, const thread Patch<RANK>& patch, int lane) thread {
    const int rows = cut_chunks<C, RANK>(t).rows;
    if (rows == 0) return 0;  // no row at hand sees a column, or is seen by one
    next.low = next.x = next.r = 0;
    next.high = max(0, (patch.x.high - patch.x.low + kSide - 1) / kSide);
    next.row.set(t, 0);
    return rows * next.high;
  }

  METAL_FUNC void take(thread WideBrick<typename C::T>& b, const thread Sides<C, RANK>& sides,
                       const thread Tile<RANK>& t, const thread Patch<RANK>& patch, int lane) thread {
    constexpr int X = RANK - 1;
    const int due = patch.x.low + next.x * kSide;
    const int first = C::FLAT ? due : max(t.axis[X].columns.low, min(due, patch.x.high - kSide));
    const int own = first + min(lane % kSide, patch.x.high - 1 - first);
    b.count = min(int(kSide), patch.x.high - first);
    const int at = C::FLAT ? own : first;
    b.a.at = box_offset(next, t, at, sides.a.step);
    b.b.at = box_offset(next, t, at, sides.b.step);
    if (C::TRANSPOSED) b.scalar = box_offset(next, t, own, sides.scalar_step);
    bool sees = true;
    NA_UNROLL for (int a = 0; a < X; ++a) {
      const int p = next.row.pos[a];
      sees = sees && p >= patch.seen[a].low && p < patch.seen[a].high;
    }
    b.seen = sees ? bits_between(max(patch.seen[X].low, due) - first, patch.seen[X].high - first) : 0u;
    if (++next.x == next.high) {
      next.x = 0;
      next.row.advance(t);
    }
  }
};

// Bricks that run on
template <typename C, int RANK>
struct WideCursor<C, RANK, true> {
  FlatCursor<RANK> next;  // it knows 32 columns at a time: two bricks

  METAL_FUNC int begin(const thread Tile<RANK>& t, const thread Patch<RANK>& patch, int lane) thread {
    const Chunk all = {0, cut_chunks<C, RANK>(t).rows, 0, 0, 0, 0};
    if (all.n_rows == 0 || next.begin(t, patch, all, lane) == 0) return 0;
    return (next.columns + kSide - 1) / kSide;
  }

  METAL_FUNC void take(thread WideBrick<typename C::T>& b, const thread Sides<C, RANK>& sides,
                       const thread Tile<RANK>& t, const thread Patch<RANK>& patch, int lane) thread {
    if (next.brick % 2 == 0) {  // uniform
      if (next.brick != 0) next.advance(t);
      look_at_column<C, false>(next, sides, t, patch);
    }
    const int first = next.brick % 2 * kSide;
    const int own = first + lane % kSide;
    b.count = min(int(kSide), next.columns - next.brick * kSide);
    ++next.brick;
    b.a.at = from_lane(next.a, own);
    b.b.at = from_lane(next.b, own);
    if (C::TRANSPOSED) b.scalar = from_lane(next.scalar, own);
    int low[RANK];
    int high[RANK];
    NA_UNROLL for (int a = 0; a < RANK; ++a) {
      const int from = a == RANK - 1 ? patch.x.low : t.box[a].low;
      low[a] = patch.seen[a].low - from;
      high[a] = patch.seen[a].high - from;
    }
    FlatBricks<RANK, 1> column;
    column.low = Field<RANK>::word(low);
    column.high = Field<RANK>::word(high);
    b.seen = 0u;
    NA_UNROLL for (int c = 0; c < kSide; ++c) {
      column.word[0][0] = simd_shuffle(next.word, ushort(first + c));
      b.seen |= column.sees(0, 0, 0, patch.seen[RANK - 1]) ? 1u << c : 0u;
    }
  }
};

// The bricks of one box
template <typename C, int RANK>
struct WideBox {
  Tile<RANK> tile;
  Patch<RANK> patch;
  Sides<C, RANK> sides;
  WideCursor<C, RANK, C::FLAT && (RANK > 1)> cursor;

  // Finds the tile and the patch of a simdgroup; false if it has no rows (uniform in it; it meets no other)
  METAL_FUNC bool find(const thread Params& prm, int tile_id, int group, int sg, int own_row) thread {
    if (!find_tile<C>(tile, prm, tile_id, group)) return false;
    find_patch<C>(patch, tile, sg, own_row);
    return patch.active;
  }

  METAL_FUNC int begin(int lane) thread { return cursor.begin(tile, patch, lane); }

  METAL_FUNC void take(thread WideBrick<typename C::T>& b, int lane) thread {
    b.a = {sides.a.box, 0, sides.a.step[RANK - 1], sides.a.channel};
    b.b = {sides.b.box, 0, sides.b.step[RANK - 1], sides.b.channel};
    b.scalar = 0;
    cursor.take(b, sides, tile, patch, lane);
  }
};

// The columns of a patch of queries: additional keys first, then the keys of its box
template <typename C>
struct WideKeys {
  WideBox<C, C::RANK> own;
  WideBox<C, 1> more;
  int extra;  // bricks of additional keys

  // own.tile and own.patch have been found; returns how many bricks there are
  METAL_FUNC int begin(const device typename C::T* k, const device typename C::T* v,
                       const device typename C::T* additional_k, const device typename C::T* additional_v,
                       const thread Params& prm, Slice slice, threadgroup typename C::T* columns, int lane) thread {
    extra = 0;
    if (C::ADDITIONAL) {
      additional_box(more.tile, more.patch, int(prm[kAdditional]), true);
      more.sides = key_sides<C, 1>(additional_k, additional_v, prm, kAdditionalKeyStride, kAdditionalValueStride,
                                   more.tile, slice, columns, columns);
      extra = more.begin(lane);
    }
    own.sides = key_sides<C, C::RANK>(k, v, prm, kKeyStride, kValueStride, own.tile, slice, columns, columns);
    return extra + own.begin(lane);
  }

  METAL_FUNC void take(thread WideBrick<typename C::T>& b, int number, int lane) thread {
    if (C::ADDITIONAL && number < extra) {
      more.take(b, lane);
    } else {
      own.take(b, lane);
    }
  }
};

}  // namespace na
