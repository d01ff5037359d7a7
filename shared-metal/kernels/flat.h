// Bricks that run on from one row of a box into the next ("flat"): 8 columns that follow one another in the patch's box.
//
//   box of 3 x 5 columns:   0 0 0 0 0     0 0 1 1 1     two flat bricks: columns 0-7 and 8-14, row after row
//                           0 0 0 1 1  -> ...
//                           1 1 1 1 1                   (in rows of their own, run.h, they would be three)
//
// Short windows fill few of the 8 columns that a brick has in one row, so there are fewer flat bricks. Their price is
// that each column has an address and a position of its own. A lane works these out for one column in 32, which are
// the columns of four bricks, and the lanes that need them fetch them by shuffles. There is no notion of a full brick:
// every column is compared with what the lane's row sees.
//
// A position is one word, with a field for each axis that counts from the box's low end; the highest bit of a field is
// set. The word minus that of a low end then keeps the highest bit of every field where the position is not below it,
// and one comparison serves all axes. Boxes must be short enough for their fields (metal/flat.py).
#pragma once

namespace na {

// What the products of a body read of each source: across (columns c and c + 1 of the lane's fragments) or along (its
// column r). The other addresses are not worked out.
enum Reads : int { kAcrossA = 1, kAlongA = 2, kAcrossB = 4, kAlongB = 8 };

// The fields of a position
template <int RANK>
struct Field {
  static constexpr constant int BITS = RANK == 2 ? 16 : 10;
  static constexpr constant int MOST = (1 << (BITS - 1)) - 1;
  static constexpr constant uint TOPS = RANK == 2 ? 0x80008000u : 0x20080200u;
  // Without the highest bits
  static METAL_FUNC uint word(const thread int* from_low) {
    uint word = 0u;
    NA_UNROLL for (int a = 0; a < RANK; ++a) word |= uint(clamp(from_low[a], 0, MOST)) << (a * BITS);
    return word;
  }
};

// The number of a place in a window's slots, or in rpb, which has 2w - 1 entries on an axis
template <bool RPB, int RANK>
METAL_FUNC int number_of(const thread Tile<RANK>& t, const thread int* place) {
  int at = 0;
  NA_UNROLL for (int a = 0; a < RANK; ++a) at = at * (RPB ? 2 * t.axis[a].w - 1 : t.axis[a].w) + place[a];
  return at;
}

// Another lane's value. No shuffle moves 64 bits.
METAL_FUNC int from_lane(int value, int lane) { return simd_shuffle(value, ushort(lane)); }
METAL_FUNC long from_lane(long value, int lane) {
  const uint low = simd_shuffle(uint(value), ushort(lane));
  const uint high = simd_shuffle(uint(ulong(value) >> 32), ushort(lane));
  return long(ulong(high) << 32 | ulong(low));
}

// What one lane knows about the bricks of one group
template <int RANK, int NB>
struct FlatBricks {
  typedef Scattered Place;
  Scattered a[NB];     // element offsets of the lane's columns in A's source
  Scattered b[NB];     // and in B's
  long scalar[NB][2];  // of columns c and c + 1: as in run.h
  int bias[NB][2];
  int slot[NB][2];
  uint word[NB][2];    // their positions
  uint low;            // what the lane's row sees, as positions without the highest bits
  uint high;
  int last[NB];        // of no use here
  uint keys[NB];       // MASKED: bit c is set if column c exists and its key may be seen
  METAL_FUNC bool sees(int j, int c, int e, Span seen) const thread {
    return ((word[j][e] - low) & ~(word[j][e] - high) & Field<RANK>::TOPS) == Field<RANK>::TOPS;
  }
  METAL_FUNC bool allows(int j, int c) const thread { return (keys[j] >> c & 1u) != 0u; }
  METAL_FUNC int bias_at(int j, int c, int e) const thread { return bias[j][e]; }
  METAL_FUNC int slot_at(int j, int c, int e) const thread { return slot[j][e]; }
  METAL_FUNC int slot_in(int j, int c, int e, Axis along_x, int row_x) const thread { return slot[j][e]; }
  METAL_FUNC long scalar_at(int j, int c, int e, long step) const thread { return scalar[j][e]; }
  METAL_FUNC void clear(int j) thread {
    a[j] = b[j] = {0, 0, 0};
    last[j] = 0;
    keys[j] = 0u;
    NA_UNROLL for (int e = 0; e < 2; ++e) {
      scalar[j][e] = bias[j][e] = slot[j][e] = 0;
      word[j][e] = ~0u;  // no row sees it
    }
  }
};

// The columns of a patch's box in order: row by row, 32 at a time. What is not uniform belongs to one of them, the lane's
// own.
template <int RANK>
struct FlatCursor {
  int brick;        // the next one
  int columns;      // how many columns there are
  int wide;         // and in each row
  int own;          // number of the lane's column
  int place[RANK];  // where it lies: from the tile's box on; along x from the patch's first column
  int step[RANK];   // 32 columns further
  long a;           // what the bricks hold of each column
  long b;
  long scalar;
  int bias;
  int slot;
  uint word;
  uint keys;        // of all lanes' columns

  // Starts with the first 32; returns how many bricks there are
  METAL_FUNC int begin(const thread Tile<RANK>& t, const thread Patch<RANK>& patch, Chunk chunk, int lane) thread {
    wide = patch.x.high - patch.x.low;
    if (wide <= 0) return 0;
    columns = chunk.n_rows * wide;
    brick = 0;
    own = lane;
    split(t, lane, place);
    if (columns > 32) split(t, 32, step);  // uniform
    return (columns + 7) / 8;
  }

  // A number of columns on every axis
  METAL_FUNC void split(const thread Tile<RANK>& t, int count, thread int* at) const thread {
    const Ratio line = divide(count, wide);
    at[0] = line.quotient;
    at[RANK - 1] = line.rest;
    if (RANK == 3) {
      const Ratio plane = divide(line.quotient, t.box[RANK - 2].high - t.box[RANK - 2].low);
      at[0] = plane.quotient;
      at[RANK - 2] = plane.rest;
    }
  }

  // Goes on to the lane's next column. What is carried from one axis to the next is 0 or 1.
  METAL_FUNC void advance(const thread Tile<RANK>& t) thread {
    own += 32;
    int carry = 0;
    NA_UNROLL for (int a = RANK - 1; a >= 0; --a) {
      const int length = a == RANK - 1 ? wide : t.box[a].high - t.box[a].low;
      place[a] += step[a] + carry;
      carry = place[a] >= length ? 1 : 0;
      place[a] -= carry * length;
    }
  }
};

// Everything about the lane's column. In place of one that does not exist the first is read; no row sees it.
template <typename C, bool MASKED, int RANK>
METAL_FUNC void look_at_column(thread FlatCursor<RANK>& next, const thread Sides<C, RANK>& sides,
                               const thread Tile<RANK>& t, const thread Patch<RANK>& patch) {
  constexpr int X = RANK - 1;
  const bool exists = next.own < next.columns;
  int within[RANK];  // its place, in the word
  int place[RANK];   // the same from the tile's box on
  int slot[RANK];
  int token[RANK];
  next.a = next.b = next.scalar = 0;
  NA_UNROLL for (int a = 0; a < RANK; ++a) {
    const Axis axis = t.axis[a];
    within[a] = exists ? next.place[a] : 0;
    place[a] = within[a] + (a == X ? patch.x.low - t.box[X].low : 0);
    next.a += place[a] * sides.a.step[a];
    next.b += place[a] * sides.b.step[a];
    if (C::TRANSPOSED) next.scalar += place[a] * sides.scalar_step[a];
    const int p = t.box[a].low + place[a];
    token[a] = p * t.step[a] + t.column_origin[a];
    slot[a] = C::TRANSPOSED && C::SLOTS ? window(p, axis.n, axis.w, axis.s, axis.causal).low - t.box[a].low : place[a];
  }
  next.word = exists ? Field<RANK>::word(within) | Field<RANK>::TOPS : ~0u;
  next.bias = C::RPB ? number_of<true>(t, place) : 0;
  next.slot = C::SLOTS ? number_of<false>(t, slot) : 0;
  next.keys = MASKED ? uint(ulong(simd_ballot(exists && sides.mask.allows(token)))) : ~0u;
}

// Takes the next brick. READ: what the body reads (Reads)
template <typename C, int READ, bool MASKED, int RANK>
METAL_FUNC void take_brick(thread FlatBricks<RANK, C::NB>& b, int j, thread FlatCursor<RANK>& next,
                           const thread Sides<C, RANK>& sides, const thread Tile<RANK>& t,
                           const thread Patch<RANK>& patch, Chunk chunk, int lane) {
  if (next.brick % 4 == 0) {  // uniform
    if (next.brick != 0) next.advance(t);
    look_at_column<C, MASKED>(next, sides, t, patch);
  }
  const int first = next.brick % 4 * 8;
  const int c = first + fragment_col(uint(lane));
  const int r = first + fragment_row(uint(lane));
  ++next.brick;
  int low[RANK];
  int high[RANK];
  int bias[RANK];  // of the lane's row
  int slot[RANK];
  NA_UNROLL for (int a = 0; a < RANK; ++a) {
    const int from = a == RANK - 1 ? patch.x.low : t.box[a].low;
    const int row = patch.row[a] - t.box[a].low;
    low[a] = patch.seen[a].low - from;
    high[a] = patch.seen[a].high - from;
    bias[a] = t.axis[a].w - 1 + (C::TRANSPOSED ? row : -row);
    slot[a] = C::TRANSPOSED ? row : patch.seen[a].low - t.box[a].low;
  }
  b.low = Field<RANK>::word(low);
  b.high = Field<RANK>::word(high);
  if (READ & kAcrossA) {
    b.a[j].first = from_lane(next.a, c);
    b.a[j].second = from_lane(next.a, c + 1);
  }
  if (READ & kAlongA) b.a[j].own = from_lane(next.a, r);
  if (READ & kAcrossB) {
    b.b[j].first = from_lane(next.b, c);
    b.b[j].second = from_lane(next.b, c + 1);
  }
  if (READ & kAlongB) b.b[j].own = from_lane(next.b, r);
  NA_UNROLL for (int e = 0; e < 2; ++e) {
    b.word[j][e] = simd_shuffle(next.word, ushort(c + e));
    if (C::TRANSPOSED) b.scalar[j][e] = from_lane(next.scalar, c + e);
    if (C::RPB) {
      const int column = from_lane(next.bias, c + e);
      b.bias[j][e] = number_of<true>(t, bias) + (C::TRANSPOSED ? -column : column);
    }
    if (C::SLOTS) {
      const int column = from_lane(next.slot, c + e);
      b.slot[j][e] = C::TRANSPOSED ? number_of<false>(t, slot) - column : column - number_of<false>(t, slot);
    }
  }
  b.keys[j] = next.keys >> first;
  NA_COUNT(partial_brick, lane == 0);
}

}  // namespace na
