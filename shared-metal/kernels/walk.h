// The walk: a patch visits the bricks of its box, NB at a time.
//
//   for each chunk of the tile's box (whole rows if one fits, evenly spread; else pieces of one row)
//     barrier, stage A and B of the chunk, barrier
//     for each group of NB bricks of the patch in the chunk:  body.take(bricks, ...)
//
// A brick is 8 columns in a row along x, starting at the PATCH's first column. It is full if every row of the patch
// sees all of it, else partial: then the body masks it. Bricks that no row sees are never visited. A body holds the
// patch's rows and what they accumulate; each header of a walking kernel (na_*.h) defines its own.
#pragma once

// Test tools define METAL_EMULATOR_COUNT to count events; elsewhere this expands to nothing.
#ifdef METAL_EMULATOR_COUNT
#define NA_COUNT(event, condition) \
  if (condition) METAL_EMULATOR_COUNT(event)
#else
#define NA_COUNT(event, condition)
#endif

namespace na {

// How the rows of the tile's box are cut into chunks
struct Chunks {
  int rows;    // rows of the box
  int per;     // rows of one chunk
  int seg;     // brick starts along x of one chunk
  int length;  // staged columns of one row
};

// Whole rows if one fits, evenly spread over the chunks; else pieces of a row with CHUNK brick starts, and 7 more
// columns, which the last brick may need
template <typename C, int RANK>
METAL_FUNC Chunks cut_chunks(const thread Tile<RANK>& t) {
  Chunks c;
  c.rows = 1;
  NA_UNROLL for (int a = 0; a < RANK - 1; ++a) c.rows *= max(t.box[a].high - t.box[a].low, 0);
  const int box_x = t.box[RANK - 1].high - t.box[RANK - 1].low;
  const bool whole = !C::STAGE || box_x <= C::CHUNK + 1;
  c.seg = whole ? box_x : C::CHUNK;
  c.length = whole ? box_x : C::CHUNK + 7;
  const int fit = C::STAGE ? (whole ? (C::CHUNK + 1) / max(box_x, 1) : 1) : max(c.rows, 1);
  const int chunks = (c.rows + fit - 1) / fit;
  c.per = (c.rows + chunks - 1) / max(chunks, 1);
  return c;
}

// The type of element offsets inside a source: device memory needs 64 bits, threadgroup memory does not
template <bool STAGE>
struct Offset {
  typedef int type;
};
template <>
struct Offset<false> {
  typedef long type;
};

// What one lane knows about the bricks of one group. At: Offset of the sources
template <int NB, typename At>
struct Bricks {
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
  METAL_FUNC bool sees(int j, int column, Span seen) const thread {
    return row[j] && column >= seen.low && column < seen.high;
  }
  METAL_FUNC bool allows(int j, int c) const thread { return (keys[j] >> c & 1u) != 0u; }
};

// The bricks of one patch in one chunk, in order: row by row, [low, high) along x
template <int RANK>
struct BrickCursor {
  int low;
  int high;
  int x;  // next brick of the row
  int r;  // row inside the chunk
  BoxRow<RANK> row;
};

// Element offset inside the box of the column at x in the cursor's row
template <int RANK>
METAL_FUNC long box_offset(const thread BrickCursor<RANK>& next, const thread Tile<RANK>& t, int x,
                           const thread long* step) {
  long at = (x - t.box[RANK - 1].low) * step[RANK - 1];
  NA_UNROLL for (int a = 0; a < RANK - 1; ++a) at += (next.row.pos[a] - t.box[a].low) * step[a];
  return at;
}

// Takes the next brick: where it lies, how much of it the patch and the lane's row see
template <int RANK, int NB, typename At>
METAL_FUNC void take_brick(thread Bricks<NB, At>& b, int j, thread BrickCursor<RANK>& next, const thread Tile<RANK>& t,
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
METAL_FUNC int bias_entry(const thread BrickCursor<RANK>& next, const thread Tile<RANK>& t,
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
METAL_FUNC int slot_entry(const thread BrickCursor<RANK>& next, const thread Tile<RANK>& t,
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

// The column side of a walk
template <typename C, int RANK>
struct Sides {
  Columns<typename C::T, RANK> a;
  Columns<typename C::T, RANK> b;
  KeyMask<RANK> mask;
  long scalar_step[RANK];
  threadgroup typename C::T* staged_a;
  threadgroup typename C::T* staged_b;
  int dim_a;
  int dim_b;
};

// Copies a piece of the box from both sources
template <typename C, int RANK>
METAL_FUNC void stage_sides(const thread Sides<C, RANK>& sides, const thread Tile<RANK>& t, Piece piece,
                            int thread_id) {
  typedef typename C::T T;
  constexpr int THREADS = C::NSG * 32;
  if (C::DA != 0) stage<T, RANK, C::DA, THREADS, C::WIDE>(sides.staged_a, sides.a, t, piece, sides.dim_a, thread_id);
  if (C::DB != 0) stage<T, RANK, C::DB, THREADS, C::WIDE>(sides.staged_b, sides.b, t, piece, sides.dim_b, thread_id);
}

// MASKED: columns are keys, some of which are masked; the body keeps those out of every result
template <typename C, int RANK, bool MASKED, typename Body>
METAL_FUNC void walk(thread Body& body, const thread Sides<C, RANK>& sides, const thread Tile<RANK>& tile,
                     const thread Patch<RANK>& patch, int sg, int lane) {
  typedef typename C::T T;
  typedef typename Offset<C::STAGE>::type At;
  constexpr int X = RANK - 1;
  const Chunks cut = cut_chunks<C, RANK>(tile);
  const int box_x = tile.box[X].high - tile.box[X].low;
  const int rel = patch.x.low - tile.box[X].low;
  for (int row0 = 0; row0 < cut.rows; row0 += cut.per) {
    const int n_rows = min(cut.per, cut.rows - row0);
    for (int x0 = 0; x0 < box_x; x0 += cut.seg) {
      if (C::STAGE) {
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the previous chunk has been used
        const int length = min(cut.length, box_x - x0);
        const Piece piece = {row0, n_rows, x0, length, min(7, C::CHUNK + 8 - n_rows * length)};
        stage_sides<C, RANK>(sides, tile, piece, sg * 32 + lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (!patch.active) continue;  // uniform in the simdgroup

      BrickCursor<RANK> next;  // bricks that start in [x0, x0 + seg)
      next.low = max(0, (x0 - rel + 7) / 8);
      next.high = min((patch.x.high - patch.x.low + 7) / 8, (x0 + cut.seg - rel + 7) / 8);
      next.x = next.low;
      next.r = 0;
      next.row.set(tile, row0);
      const int total = n_rows * max(0, next.high - next.low);
      for (int done = 0; done < total; done += C::NB) {
        Bricks<C::NB, At> b;
        const int count = min(int(C::NB), total - done);
        NA_UNROLL for (int j = 0; j < C::NB; ++j) {
          b.full[j] = b.row[j] = false;  // an unused brick is masked entirely
          b.a[j] = b.b[j] = b.x[j] = b.last[j] = b.scalar[j] = b.bias[j] = b.slot[j] = 0;
          if (j < count) {
            const int x = patch.x.low + next.x * 8;
            const int staged = next.r * cut.length + x - tile.box[X].low - x0;
            b.a[j] = C::STAGE ? At(staged * pitch<T, C::DA>()) : At(box_offset(next, tile, x, sides.a.step));
            b.b[j] = C::STAGE ? At(staged * pitch<T, C::DB>()) : At(box_offset(next, tile, x, sides.b.step));
            if (C::TRANSPOSED) b.scalar[j] = box_offset(next, tile, x, sides.scalar_step);
            if (C::SLOTS) b.slot[j] = slot_entry<C::TRANSPOSED>(next, tile, patch, x);
            if (C::RPB) b.bias[j] = bias_entry<C::TRANSPOSED>(next, tile, patch, x);
            b.keys[j] = MASKED ? brick_keys(sides.mask, next.row, tile, x, patch.x.high, lane) : 0xffu;
            take_brick(b, j, next, tile, patch);
            NA_COUNT(full_brick, b.full[j] && lane == 0);
            NA_COUNT(partial_brick, !b.full[j] && lane == 0);
          }
        }
        if (C::STAGE) {
          const Staged<T, C::DA> a = {sides.staged_a};
          const Staged<T, C::DB> v = {sides.staged_b};
          body.take(b, count, a, v, patch.seen[X]);
        } else {
          const Direct<T, C::WIDE> a = {sides.a.box, sides.a.step[X], sides.a.channel, sides.dim_a};
          const Direct<T, C::WIDE> v = {sides.b.box, sides.b.step[X], sides.b.channel, sides.dim_b};
          body.take(b, count, a, v, patch.seen[X]);
        }
      }
    }
  }
}

// Logits of NB bricks: s[j] += row . column, in independent chains that share the row's fragments
template <typename T, int DP, int NB, typename At, typename Source>
METAL_FUNC void multiply_across(thread Pair<float>* s, const thread Pair<T>* row, const thread At* at,
                                const thread int* last, int count, const thread Source& source, int fr, int fc) {
  if (count == NB) {  // the usual case
    NA_UNROLL for (int d = 0; d < DP; d += 8) {
      NA_UNROLL for (int j = 0; j < NB; ++j) mma<T>(s[j], row[d / 8], source.across(at[j], fc, d + fr, last[j]));
    }
  } else {
    NA_UNROLL for (int j = 0; j < NB - 1; ++j) {
      if (j < count) {
        NA_UNROLL for (int d = 0; d < DP; d += 8) mma<T>(s[j], row[d / 8], source.across(at[j], fc, d + fr, last[j]));
      }
    }
  }
  // Keeps the loads of the next product behind this one: float fragments of both at once do not fit in registers
  if (sizeof(T) == 4) simdgroup_barrier(mem_flags::mem_none);
}

// A row's channels from registers to device memory
template <typename T, int DP>
METAL_FUNC void write_row(device T* to, const thread Pair<float>* from, float factor, int fc, int dim) {
  NA_UNROLL for (int d = 0; d < DP; d += 8) {
    if (d + fc < dim) to[d + fc] = T(from[d / 8][0] * factor);
    if (d + fc + 1 < dim) to[d + fc + 1] = T(from[d / 8][1] * factor);
  }
}

}  // namespace na
