// The walk: a patch visits the bricks of its box, NB at a time.
//
//   for each chunk of the tile's box (whole rows if one fits, evenly spread; else pieces of one row)
//     barrier, stage A and B of the chunk, barrier
//     for each group of NB bricks of the patch in the chunk:  body.take(bricks, ...)
//
// A brick is 8 columns of the patch's box, which is cut into bricks in one of two ways (run.h, flat.h). Some of its
// columns may be seen by no row, or not by all: those the body masks. A body holds the patch's rows and what they
// accumulate; each header of a walking kernel (na_*.h) defines its own.
#pragma once

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
  c.per = c.rows;
  if (!C::STAGE) return c;
  const int fit = whole ? (C::CHUNK + 1) / max(box_x, 1) : 1;
  const int chunks = (c.rows + fit - 1) / fit;
  c.per = (c.rows + chunks - 1) / max(chunks, 1);
  return c;
}

// Copies a piece of the box from both sources
template <typename C, int RANK>
METAL_FUNC void stage_sides(const thread Sides<C, RANK>& sides, const thread Tile<RANK>& t, Piece piece,
                            int thread_id) {
  typedef typename C::T T;
  constexpr int THREADS = C::NSG * 32;
  if (C::DA != 0) stage<T, RANK, C::DA, THREADS, C::WIDE>(sides.staged_a, sides.a, t, piece, sides.dim_a, thread_id);
  if (C::DB != 0) stage<T, RANK, C::DB, THREADS, C::WIDE>(sides.staged_b, sides.b, t, piece, sides.dim_b, thread_id);
}

// The two ways to cut a box into bricks
template <typename C, int RANK, bool FLAT = C::FLAT && (RANK > 1)>
struct Way {
  typedef RunBricks<C::NB, typename Offset<C::STAGE>::type, C::TRANSPOSED> Bricks;
  typedef RunCursor<RANK> Cursor;
};
template <typename C, int RANK>
struct Way<C, RANK, true> {
  typedef FlatBricks<RANK, C::NB> Bricks;
  typedef FlatCursor<RANK> Cursor;
};

// MASKED: columns are keys, some of which are masked; the body keeps those out of every result
template <typename C, int RANK, bool MASKED, typename Body>
METAL_FUNC void walk(thread Body& body, const thread Sides<C, RANK>& sides, const thread Tile<RANK>& tile,
                     const thread Patch<RANK>& patch, int sg, int lane) {
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

      const Chunk chunk = {row0, n_rows, x0, cut.seg, cut.length, rel};
      typename Way<C, RANK>::Cursor next;
      const int total = next.begin(tile, patch, chunk, lane);
      for (int done = 0; done < total; done += C::NB) {
        typename Way<C, RANK>::Bricks b;
        const int count = min(int(C::NB), total - done);
        NA_UNROLL for (int j = 0; j < C::NB; ++j) {
          b.clear(j);
          if (j < count) take_brick<C, Body::READ, MASKED>(b, j, next, sides, tile, patch, chunk, lane);
        }
        const auto a = Sources<C>::a(sides);
        const auto v = Sources<C>::b(sides);
        body.take(b, count, a, v, patch.seen[X]);
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

// sum += weight * column, of one brick and DP channels from `first` on. hidden: the lane's column counts as zeros
template <typename C, typename A, int DP, typename At, typename Source>
METAL_FUNC void multiply_along(thread Pair<float>* sum, Pair<A> weight, At at, int last, const thread Source& source,
                               int fr, int fc, bool hidden, int first = 0) {
  typedef typename C::T T;
  constexpr int N = products_along<C, DP>();
  NA_UNROLL for (int i = 0; i < DP / 8; i += N) {
    Pair<T> own[N];
    source.template along<N>(own, at, fr, first + channel_along<N>(i, fc), last);
    NA_UNROLL for (int n = 0; n < N; ++n) {
      if (hidden) own[n] = Pair<T>(T(0));
      mma<T, A>(sum[i + n], weight, own[n]);
    }
  }
}

// The channels that multiply_along made, from registers to device memory
template <typename C, int DP, typename R>
METAL_FUNC void write_row(device R* to, const thread Pair<float>* from, float factor, int fc, int dim, int first = 0) {
  NA_UNROLL for (int i = 0; i < DP / 8; ++i) {
    const int d = first + channel_along<products_along<C, DP>()>(i, fc);
    if (d < dim) to[d] = R(from[i][0] * factor);
    if (d + 1 < dim) to[d + 1] = R(from[i][1] * factor);
  }
}

}  // namespace na
