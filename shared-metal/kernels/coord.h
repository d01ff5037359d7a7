// Who computes what: tiles, patches, and where their tokens lie.
//
// A launch walks ROWS (queries; keys where TRANSPOSED) and reads COLUMNS (the keys of their windows; the queries that
// see them). A patch is the 8 rows of one simdgroup, PZ x PY x PX positions times HR heads that share a key/value
// head; a tile is the NSG patches of one threadgroup, side by side along x (the last axis):
//
//        box of the tile: every column that its rows see         tile: patch 0 | patch 1 | patch 2
//        +--------------------------------+                      (PY 2, PX 4, NSG 3, window 5 x 5)
//        | . . . . . . . . . . . . . . .  |
//        | . . . . . . . . . . . . . . .  |     Patches share all axes but x, so they share the rows of the box,
//        | . . r r r r|r r r r|r r r r .  |     and every simdgroup has work in every chunk of it.
//        | . . r r r r|r r r r|r r r r .  |
//        | . . . . . . . . . . . . . . .  |
//        | . . . . . . . . . . . . . . .  |
//        +--------------------------------+
//
// A call may compute a piece of a larger problem, whose tensors then begin somewhere inside an axis. Positions always
// count from the beginning of the whole axis, so windows and groups are those of the whole problem. The first tile
// begins at the first row at hand; only the tokens of a tensor count from its own first one.
//
// Config (C): the struct of compile-time choices that source.py generates for an entry point.
#pragma once

namespace na {

// One axis inside one dilation group, counted in positions of the whole axis
struct Axis {
  int n;         // positions of the whole axis
  Span rows;     // those at hand
  Span columns;
  int w;
  int s;
  bool causal;
};

// What is the same for all lanes of a threadgroup
template <int RANK>
struct Tile {
  Axis axis[RANK];
  int step[RANK];           // tokens between two positions: the dilation
  int row_origin[RANK];     // token of position 0 in tensors of rows: negative where they begin further inside the axis
  int column_origin[RANK];  // the same in tensors of columns
  int corner[RANK];         // first row
  Span box[RANK];           // columns that the tile's rows see
  Span common[RANK];        // those that all of them see
};

// The patch of one simdgroup and the row of one lane; on axes other than x its columns are the tile's box
template <int RANK>
struct Patch {
  Span x;            // columns along x that any of its rows sees
  Span common[RANK]; // columns that all of them see
  int row[RANK];     // this lane's row
  int token[RANK];   // the same in tensors of rows
  Span seen[RANK];   // and its columns
  bool active;       // uniform: the patch begins inside the axis
  bool store;        // this lane's row exists

  // How many of its row's `dim` channels the lane loads: none if the row does not exist; it then holds zeros
  METAL_FUNC int channels(int dim) const thread { return store ? dim : 0; }
};

// a = quotient * b + rest, where a is not negative. A division is expensive on a GPU, and most divisors are 1.
struct Ratio {
  int quotient;
  int rest;
};
METAL_FUNC Ratio divide(int a, int b) {
  if (b == 1) return {a, 0};
  const int quotient = int(uint(a) / uint(b));
  return {quotient, a - quotient * b};
}

// The columns at hand that the row at position p sees. The keys that a query sees are all at hand (except in full
// attention, where windows may be longer than the keys). Perhaps no query that sees a key is at hand: then low may be
// above high.
template <bool TRANSPOSED>
METAL_FUNC Span interval(int p, Axis a) {
  Span span = TRANSPOSED ? inverse(p, a.n, a.w, a.s, a.causal) : window(p, a.n, a.w, a.s, a.causal);
  if (TRANSPOSED) span.low = max(span.low, a.columns.low);
  span.high = min(span.high, a.columns.high);
  return span;
}

// The positions at hand, of n in a dilation group: those of the tokens [start, start + length), out of `full`. Mostly
// that is all of them, and divisions are expensive on a GPU.
METAL_FUNC Span at_hand(int start, int length, int full, int n, int group, int d) {
  Span span = {0, n};
  if (start != 0) span.low = group_length(start, group, d);
  if (start + length != full) span.high = group_length(start + length, group, d);
  return span;
}

template <typename C>
METAL_FUNC int patch_extent(int axis) {
  return axis == C::RANK - 1 ? C::PX : (axis == C::RANK - 2 ? C::PY : C::PZ);
}

// The position inside the patch of fragment row r (heads fastest, then x)
template <typename C>
METAL_FUNC int patch_coord(int axis, int r) {
  const int position = r / C::HR;
  if (axis == C::RANK - 1) return position % C::PX;
  return axis == C::RANK - 2 ? (position / C::PX) % C::PY : position / (C::PX * C::PY);
}

// The number (line by line along x) of the tile that is launched nth. Tiles at both ends of x come first, because they
// have the most work: in the key walk, if windows are no wider than a tile, most queries see the keys there, and a row
// may take two bricks where elsewhere it takes one. A launch ends sooner if its longest threadgroups start early and on
// different cores.
METAL_FUNC int ends_first(int nth, int lines, int along_x) {
  if (along_x <= 2) return nth;
  if (nth < 2 * lines) return nth / 2 * along_x + nth % 2 * (along_x - 1);
  const Ratio line = divide(nth - 2 * lines, along_x - 2);
  return line.quotient * along_x + line.rest + 1;
}

// Finds the tile of this threadgroup; false if it lies past the end of its dilation group (groups differ in length)
template <typename C>
METAL_FUNC bool find_tile(thread Tile<C::RANK>& t, const thread Params& prm, int tile_id, int group_id) {
  constexpr int rows_shape = C::TRANSPOSED ? int(kKeyShape) : int(kQueryShape);
  constexpr int rows_from = C::TRANSPOSED ? int(kKeyStart) : int(kQueryStart);
  constexpr int columns_shape = C::TRANSPOSED ? int(kQueryShape) : int(kKeyShape);
  constexpr int columns_from = C::TRANSPOSED ? int(kQueryStart) : int(kKeyStart);
  if (C::TRANSPOSED) {
    int lines = 1;
    NA_UNROLL for (int a = 0; a < C::RANK - 1; ++a) lines *= int(prm[kTiles + a]);
    tile_id = ends_first(tile_id, lines, int(prm[kTiles + C::RANK - 1]));
  }
  bool inside = true;
  NA_UNROLL for (int a = C::RANK - 1; a >= 0; --a) {
    const int d = int(prm[kDilation + a]);
    const int extent = patch_extent<C>(a) * (a == C::RANK - 1 ? C::NSG : 1);
    const Ratio of_group = divide(group_id, d);
    Ratio of_tile = {0, tile_id};
    if (a != 0) of_tile = divide(tile_id, int(prm[kTiles + a]));
    const int group = of_group.rest;
    const int full = int(prm[kFullShape + a]);
    const int n = d == 1 ? full : group_length(full, group, d);
    const int rows_start = int(prm[rows_from + a]);
    const int columns_start = int(prm[columns_from + a]);
    t.step[a] = d;
    t.row_origin[a] = group - rows_start;
    t.column_origin[a] = group - columns_start;
    t.axis[a].n = n;
    t.axis[a].rows = at_hand(rows_start, int(prm[rows_shape + a]), full, n, group, d);
    t.axis[a].columns = at_hand(columns_start, int(prm[columns_shape + a]), full, n, group, d);
    t.axis[a].w = int(prm[kWindow + a]);
    t.axis[a].s = int(prm[kStride + a]);
    t.axis[a].causal = prm[kCausal + a] != 0;
    t.corner[a] = t.axis[a].rows.low + of_tile.rest * extent;
    group_id = of_group.quotient;
    tile_id = of_tile.quotient;
    inside = inside && t.corner[a] < t.axis[a].rows.high;
    const int last = min(t.corner[a] + extent, t.axis[a].rows.high) - 1;
    const Span of_first = interval<C::TRANSPOSED>(t.corner[a], t.axis[a]);
    const Span of_last = interval<C::TRANSPOSED>(last, t.axis[a]);
    t.box[a] = {of_first.low, of_last.high};
    t.common[a] = {of_last.low, of_first.high};
  }
  return inside;
}

// Patches and rows past the end of the axis take its last position, hold zeros and store nothing: every simdgroup must
// reach every barrier
template <typename C>
METAL_FUNC void find_patch(thread Patch<C::RANK>& patch, const thread Tile<C::RANK>& t, int sg, int fragment_row) {
  constexpr int X = C::RANK - 1;
  patch.active = t.corner[X] + sg * C::PX < t.axis[X].rows.high;
  patch.store = patch.active;
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) {
    const int end = t.axis[a].rows.high - 1;
    const int first = min(t.corner[a] + (a == X ? sg * C::PX : 0), end);
    const int p = first + patch_coord<C>(a, fragment_row);
    patch.store = patch.store && p <= end;
    patch.row[a] = min(p, end);
    patch.token[a] = patch.row[a] * t.step[a] + t.row_origin[a];
    patch.seen[a] = interval<C::TRANSPOSED>(patch.row[a], t.axis[a]);
    patch.common[a] = t.common[a];  // on axes other than x the tile is as long as its patches
    if (a == X) {
      const int last = min(first + patch_extent<C>(a) - 1, end);
      const Span of_first = interval<C::TRANSPOSED>(first, t.axis[a]);
      const Span of_last = interval<C::TRANSPOSED>(last, t.axis[a]);
      patch.x = {of_first.low, of_last.high};
      patch.common[a] = {of_last.low, of_first.high};
    }
  }
}

// Element offset of the lane's row in the tensor whose strides are at `block`
template <int RANK>
METAL_FUNC long row_at(const thread Params& prm, int block, const thread Patch<RANK>& patch, int batch, int head) {
  long at = batch * prm[block] + head * prm[block + 1];
  NA_UNROLL for (int a = 0; a < RANK; ++a) at += patch.token[a] * prm[block + 2 + a];
  return at;
}

// A row of the tile's box: its position on every axis but x. Rows are numbered in row-major order; setting a row takes
// one division, advancing none.
template <int RANK>
struct BoxRow {
  int pos[RANK];
  METAL_FUNC void set(const thread Tile<RANK>& t, int row) thread {
    if (RANK == 2) pos[0] = t.box[0].low + row;
    if (RANK == 3) {
      const Ratio plane = divide(row, t.box[RANK - 2].high - t.box[RANK - 2].low);
      pos[0] = t.box[0].low + plane.quotient;
      pos[RANK - 2] = t.box[RANK - 2].low + plane.rest;
    }
  }
  METAL_FUNC void advance(const thread Tile<RANK>& t) thread {
    if (RANK == 2) ++pos[0];
    if (RANK == 3 && ++pos[RANK - 2] == t.box[RANK - 2].high) {
      pos[RANK - 2] = t.box[RANK - 2].low;
      ++pos[0];
    }
  }
};

}  // namespace na
