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
// Config (C): the struct of compile-time choices that source.py generates for an entry point.
#pragma once

namespace na {

// One axis inside one dilation group, counted in positions
struct Axis {
  int rows;
  int columns;
  int w;
  int s;
  bool causal;
};

// What is the same for all lanes of a threadgroup
template <int RANK>
struct Tile {
  Axis axis[RANK];
  int group[RANK];   // dilation group
  int step[RANK];    // tokens between two positions: the dilation
  int corner[RANK];  // first row
  Span box[RANK];    // columns that the tile's rows see
};

// The patch of one simdgroup and the row of one lane; on axes other than x its columns are the tile's box
template <int RANK>
struct Patch {
  Span x;            // columns along x that any of its rows sees
  Span common[RANK]; // columns that all of them see
  int row[RANK];     // this lane's row
  Span seen[RANK];   // and its columns
  bool active;       // uniform: the patch begins inside the axis
  bool store;        // this lane's row exists

  // How many of `dim` channels the lane loads of its row: none if the row does not exist, which then holds zeros
  METAL_FUNC int channels(int dim) const thread { return store ? dim : 0; }
};

// The columns that the row at position p sees
template <bool TRANSPOSED>
METAL_FUNC Span interval(int p, Axis a) {
  Span span = TRANSPOSED ? inverse(p, a.columns, a.w, a.s, a.causal) : window(p, a.columns, a.w, a.s, a.causal);
  span.high = min(span.high, a.columns);
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

// Number, line by line along x, of the tile that is launched nth. Tiles at both ends of x come first, because they have
// the most work: in the key walk, if windows are no wider than a tile, most queries see the keys there, and a row may
// take two bricks where elsewhere it takes one. A launch ends sooner if its longest threadgroups start early and on
// different cores.
METAL_FUNC int ends_first(int nth, int lines, int along_x) {
  if (along_x <= 2) return nth;
  if (nth < 2 * lines) return nth / 2 * along_x + nth % 2 * (along_x - 1);
  nth -= 2 * lines;
  return nth / (along_x - 2) * along_x + nth % (along_x - 2) + 1;
}

// Finds the tile of this threadgroup; false if it lies beyond its dilation group (groups differ in length)
template <typename C>
METAL_FUNC bool find_tile(thread Tile<C::RANK>& t, const thread Params& prm, int tile_id, int group_id) {
  constexpr int rows_slot = C::TRANSPOSED ? int(kKeyShape) : int(kQueryShape);
  constexpr int columns_slot = C::TRANSPOSED ? int(kQueryShape) : int(kKeyShape);
  if (C::TRANSPOSED) {
    int lines = 1;
    NA_UNROLL for (int a = 0; a < C::RANK - 1; ++a) lines *= int(prm[kTiles + a]);
    tile_id = ends_first(tile_id, lines, int(prm[kTiles + C::RANK - 1]));
  }
  bool inside = true;
  NA_UNROLL for (int a = C::RANK - 1; a >= 0; --a) {
    const int d = int(prm[kDilation + a]);
    const int tiles = int(prm[kTiles + a]);
    const int extent = patch_extent<C>(a) * (a == C::RANK - 1 ? C::NSG : 1);
    t.step[a] = d;
    t.group[a] = group_id % d;
    group_id /= d;
    t.axis[a].rows = group_length(int(prm[rows_slot + a]), t.group[a], d);
    t.axis[a].columns = group_length(int(prm[columns_slot + a]), t.group[a], d);
    t.axis[a].w = int(prm[kWindow + a]);
    t.axis[a].s = int(prm[kStride + a]);
    t.axis[a].causal = prm[kCausal + a] != 0;
    t.corner[a] = (tile_id % tiles) * extent;
    tile_id /= tiles;
    inside = inside && t.corner[a] < t.axis[a].rows;
    const int last = min(t.corner[a] + extent, t.axis[a].rows) - 1;
    t.box[a].low = interval<C::TRANSPOSED>(t.corner[a], t.axis[a]).low;
    t.box[a].high = interval<C::TRANSPOSED>(last, t.axis[a]).high;
  }
  return inside;
}

// Patches and rows beyond the axis take its last position, hold zeros and store nothing: every simdgroup reaches every
// barrier
template <typename C>
METAL_FUNC void find_patch(thread Patch<C::RANK>& patch, const thread Tile<C::RANK>& t, int sg, int fragment_row) {
  constexpr int X = C::RANK - 1;
  patch.active = t.corner[X] + sg * C::PX < t.axis[X].rows;
  patch.store = patch.active;
  NA_UNROLL for (int a = 0; a < C::RANK; ++a) {
    const int end = t.axis[a].rows - 1;
    const int first = min(t.corner[a] + (a == X ? sg * C::PX : 0), end);
    const int last = min(first + patch_extent<C>(a) - 1, end);
    const int p = first + patch_coord<C>(a, fragment_row);
    patch.store = patch.store && p <= end;
    patch.row[a] = min(p, end);
    patch.seen[a] = interval<C::TRANSPOSED>(patch.row[a], t.axis[a]);
    const Span of_first = interval<C::TRANSPOSED>(first, t.axis[a]);
    const Span of_last = interval<C::TRANSPOSED>(last, t.axis[a]);
    patch.common[a].low = of_last.low;
    patch.common[a].high = of_first.high;
    if (a == X) {
      patch.x.low = of_first.low;
      patch.x.high = of_last.high;
    }
  }
}

// Element offset of positions p of the tile's dilation group, in the tensor whose strides are at `block`
template <int RANK>
METAL_FUNC long token_offset(const thread Params& prm, int block, const thread Tile<RANK>& t, int batch, int head,
                             const thread int* p) {
  long at = batch * prm[block] + head * prm[block + 1];
  NA_UNROLL for (int a = 0; a < RANK; ++a) at += (p[a] * t.step[a] + t.group[a]) * prm[block + 2 + a];
  return at;
}

// A row of the tile's box: its position on every axis but x. Rows are numbered row-major; one division to set, none
// to advance.
template <int RANK>
struct BoxRow {
  int pos[RANK];
  METAL_FUNC void set(const thread Tile<RANK>& t, int row) thread {
    if (RANK == 2) pos[0] = t.box[0].low + row;
    if (RANK == 3) {
      const int ny = t.box[RANK - 2].high - t.box[RANK - 2].low;
      pos[0] = t.box[0].low + row / ny;
      pos[RANK - 2] = t.box[RANK - 2].low + row % ny;
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
