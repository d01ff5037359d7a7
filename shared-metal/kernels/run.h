// Bricks that lie in one row of a box each ("run"): 8 columns side by side along x, from the PATCH's first column on.
//
// A brick is full if every row of the patch sees all of it, else partial: then the body masks it. Bricks that no row
// sees are never visited. flat.h has the other way to cut a box into bricks; bodies ask both the same questions.
#pragma once

// Test tools define METAL_EMULATOR_COUNT to count events; elsewhere this expands to nothing.
#ifdef METAL_EMULATOR_COUNT
#define NA_COUNT(event, condition) \
  if (condition) METAL_EMULATOR_COUNT(event)
#else
#define NA_COUNT(event, condition)
#endif

namespace na {

// What one lane knows about the bricks of one group. At: Offset of the sources
template <int NB, typename At, bool TRANSPOSED>
struct RunBricks {
  typedef At Place;
  At a[NB];         // element offset of the first column in A's source
  At b[NB];         // and in B's
  long scalar[NB];  // and in the tensor of the queries' stats or slots (TRANSPOSED)
  int bias[NB];     // entry of rpb for the lane's row and the first column
  int slot[NB];     // window slot of the lane's row and the first column (TRANSPOSED: without the part of x)
  int x[NB];        // position of the first column
  int last[NB];     // last column inside the patch's box, 0..7
  bool full[NB];    // uniform: no mask needed
  bool row[NB];     // the lane's row sees this row of the box
  uint keys[NB];    // MASKED: bit c is set if column c lies inside the patch's box and its key may be seen
  METAL_FUNC bool inside(int j, int column, Span seen) const thread {
    return row[j] && column >= seen.low && column < seen.high;
  }
  // Of column c + e, where e is 0 or 1 and c is the lane's fragment column; seen: what the lane's row sees along x
  METAL_FUNC bool sees(int j, int c, int e, Span seen) const thread { return full[j] || inside(j, x[j] + c + e, seen); }
  METAL_FUNC bool allows(int j, int c) const thread { return (keys[j] >> c & 1u) != 0u; }
  METAL_FUNC int bias_at(int j, int c, int e) const thread { return TRANSPOSED ? bias[j] - c - e : bias[j] + c + e; }
  METAL_FUNC int slot_at(int j, int c, int e) const thread { return slot[j] + c + e; }
  METAL_FUNC int slot_in(int j, int c, int e, Axis along_x, int row_x) const thread {  // TRANSPOSED
    return slot[j] + (row_x - window(x[j] + c + e, along_x.n, along_x.w, along_x.s, along_x.causal).low);
  }
  template <typename Step>
  METAL_FUNC long scalar_at(int j, int c, int e, Step step) const thread {
    return scalar[j] + (c + e) * step;
  }
  METAL_FUNC void clear(int j) thread {  // an unused brick is masked entirely
    full[j] = row[j] = false;
    a[j] = b[j] = x[j] = last[j] = scalar[j] = bias[j] = slot[j] = 0;
  }
};

// The bricks of one patch in one chunk, in order: row by row, [low, high) along x
template <int RANK>
struct RunCursor {
  int low;
  int high;
  int x;  // next brick of the row
  int r;  // row inside the chunk
  BoxRow<RANK> row;

  // Starts with the bricks that begin in [x0, x0 + seg) of the tile's box; returns how many there are
  METAL_FUNC int begin(const thread Tile<RANK>& t, const thread Patch<RANK>& patch, Chunk chunk, int lane) thread {
    low = max(0, (chunk.x0 - chunk.rel + 7) / 8);
    high = min((patch.x.high - patch.x.low + 7) / 8, (chunk.x0 + chunk.seg - chunk.rel + 7) / 8);
    x = low;
    r = 0;
    row.set(t, chunk.row0);
    return chunk.n_rows * max(0, high - low);
  }
};

// Element offset inside the box of the column at x in the cursor's row
template <int RANK>
METAL_FUNC long box_offset(const thread RunCursor<RANK>& next, const thread Tile<RANK>& t, int x,
                           const thread long* step) {
  long at = (x - t.box[RANK - 1].low) * step[RANK - 1];
  NA_UNROLL for (int a = 0; a < RANK - 1; ++a) at += (next.row.pos[a] - t.box[a].low) * step[a];
  return at;
}

// Where the next brick lies, and how much of it the patch and the lane's row see
template <int RANK, typename Bricks>
METAL_FUNC void place_brick(thread Bricks& b, int j, thread RunCursor<RANK>& next, const thread Tile<RANK>& t,
                            const thread Patch<RANK>& patch) {
  constexpr int X = RANK - 1;
  b.x[j] = patch.x.low + next.x * 8;
  b.last[j] = min(7, patch.x.high - 1 - b.x[j]);
  b.full[j] = b.x[j] >= patch.common[X].low && b.x[j] + 8 <= patch.common[X].high;
  b.row[j] = true;
  NA_UNROLL for (int a = 0; a < X; ++a) {
    const int p = next.row.pos[a];
    b.full[j] = b.full[j] && p >= patch.common[a].low && p < patch.common[a].high;
    b.row[j] = b.row[j] && p >= patch.seen[a].low && p < patch.seen[a].high;
  }
  if (++next.x == next.high) {
    next.x = next.low;
    ++next.r;
    next.row.advance(t);
  }
}

// Entry of flattened rpb [2w - 1 per axis] for the lane's row and the brick's first column
template <bool TRANSPOSED, int RANK>
METAL_FUNC int bias_entry(const thread RunCursor<RANK>& next, const thread Tile<RANK>& t,
                          const thread Patch<RANK>& patch, int x) {
  int at = 0;
  NA_UNROLL for (int a = 0; a < RANK; ++a) {
    const int column = a == RANK - 1 ? x : next.row.pos[a];
    const int offset = TRANSPOSED ? patch.row[a] - column : column - patch.row[a];
    at = at * (2 * t.axis[a].w - 1) + offset + t.axis[a].w - 1;
  }
  return at;
}

// Window slot, row-major over the window, of the lane's row and the brick's first column. Where TRANSPOSED the row is a
// key and each column a query with a window of its own: then the part of x is left to the body.
template <bool TRANSPOSED, int RANK>
METAL_FUNC int slot_entry(const thread RunCursor<RANK>& next, const thread Tile<RANK>& t,
                          const thread Patch<RANK>& patch, int x) {
  int at = 0;
  NA_UNROLL for (int a = 0; a < RANK - 1; ++a) {
    const Axis axis = t.axis[a];
    const int p = next.row.pos[a];
    const int slot = TRANSPOSED ? patch.row[a] - window(p, axis.n, axis.w, axis.s, axis.causal).low
                                : p - patch.seen[a].low;
    at = at * axis.w + slot;
  }
  return at * t.axis[RANK - 1].w + (TRANSPOSED ? 0 : x - patch.seen[RANK - 1].low);
}

// The keys of a brick that may be seen: each of 8 lanes reads one bit, and the simdgroup votes
template <int RANK>
METAL_FUNC uint brick_keys(const thread KeyMask<RANK>& mask, const thread BoxRow<RANK>& row, const thread Tile<RANK>& t,
                           int x, int end, int lane) {
  int token[RANK];
  NA_UNROLL for (int a = 0; a < RANK; ++a) {
    token[a] = (a == RANK - 1 ? x + lane : row.pos[a]) * t.step[a] + t.column_origin[a];
  }
  return uint(ulong(simd_ballot(lane < 8 && x + lane < end && mask.allows(token))));
}

// Takes the next brick. READ (flat.h) makes no difference here.
template <typename C, int READ, bool MASKED, int RANK, typename At>
METAL_FUNC void take_brick(thread RunBricks<C::NB, At, C::TRANSPOSED>& b, int j, thread RunCursor<RANK>& next,
                           const thread Sides<C, RANK>& sides, const thread Tile<RANK>& tile,
                           const thread Patch<RANK>& patch, Chunk chunk, int lane) {
  typedef typename C::T T;
  const int x = patch.x.low + next.x * 8;
  const int staged = next.r * chunk.length + x - tile.box[RANK - 1].low - chunk.x0;
  b.a[j] = C::STAGE ? At(staged * pitch<T, C::DA>()) : At(box_offset(next, tile, x, sides.a.step));
  b.b[j] = C::STAGE ? At(staged * pitch<T, C::DB>()) : At(box_offset(next, tile, x, sides.b.step));
  if (C::TRANSPOSED) b.scalar[j] = box_offset(next, tile, x, sides.scalar_step);
  if (C::SLOTS) b.slot[j] = slot_entry<C::TRANSPOSED>(next, tile, patch, x);
  if (C::RPB) b.bias[j] = bias_entry<C::TRANSPOSED>(next, tile, patch, x);
  b.keys[j] = MASKED ? brick_keys(sides.mask, next.row, tile, x, patch.x.high, lane) : 0xffu;
  place_brick(b, j, next, tile, patch);
  NA_COUNT(full_brick, b.full[j] && lane == 0);
  NA_COUNT(partial_brick, !b.full[j] && lane == 0);
}

}  // namespace na
