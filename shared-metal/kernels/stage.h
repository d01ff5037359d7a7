// Where a brick's fragments come from: copies of a chunk in threadgroup memory, or device memory itself.
//
// Two tensors are read per column: A (keys; queries in the key walk) of DA channels and B (values; output gradients)
// of DB channels. Each can be read two ways, for the two products it takes part in:
//
//   across: rows of the fragment are channels, columns are tokens      (the right side of  row . token)
//   along:  rows of the fragment are tokens, columns are channels      (the right side of  weight * token)
//
// A brick may extend beyond its patch's box. What is read there must be finite, and is masked: staged bricks continue
// into the next row or into the zeros behind the last one; direct reads repeat the last column inside.
#pragma once

namespace na {

// Two neighbouring channels of one token, zero beyond dim; `channel`: elements between two channels. WIDE (below): dim
// is that of the padded token, or 0.
template <bool WIDE, typename T>
METAL_FUNC Pair<T> load_channels(const device T* p, int d, int dim, long channel) {
  Pair<T> r = Pair<T>(T(0));
  if (WIDE) {
    if (dim != 0) r = *(const device Pair<T>*)(p + d);
    return r;
  }
  if (d < dim) r[0] = p[d * channel];
  if (d + 1 < dim) r[1] = p[(d + 1) * channel];
  return r;
}

// Copies one token's channels to threadgroup memory; LANES threads share a token, this one is `part`. Channels beyond
// dim become 0. WIDE: dim == DP, channels lie side by side and every token starts at a 16-byte boundary, so whole
// 16-byte words are moved.
template <typename T, int DP, bool WIDE>
struct TokenCopy {
  static constexpr constant int E = WIDE ? 16 / int(sizeof(T)) : 1;  // elements of one move
  static constexpr constant int MOVES = DP / E;                     // moves of one token
  static constexpr constant int LANES =
      MOVES % 32 == 0 ? 32 : (MOVES % 16 == 0 ? 16 : (MOVES % 8 == 0 ? 8 : (MOVES % 4 == 0 ? 4 : 2)));
  static METAL_FUNC void copy(threadgroup T* dst, const device T* src, int dim, long channel, int part) {
    NA_UNROLL for (int i = 0; i < MOVES / LANES; ++i) {
      const int c = (i * LANES + part) * E;
      if (WIDE) {
        *(threadgroup uint4*)(dst + c) = *(const device uint4*)(src + c);
      } else {
        dst[c] = c < dim ? src[c * channel] : T(0);
      }
    }
  }
  static METAL_FUNC void clear(threadgroup T* dst, int part) {
    NA_UNROLL for (int i = 0; i < MOVES / LANES; ++i) {
      const int c = (i * LANES + part) * E;
      if (WIDE) {
        *(threadgroup uint4*)(dst + c) = uint4(0u);
      } else {
        dst[c] = T(0);
      }
    }
  }
};

// One column tensor: the box's first token, and the elements between two positions on each axis
template <typename T, int RANK>
struct Columns {
  const device T* box;
  long step[RANK];
  long channel;
};

template <typename T, int RANK>
METAL_FUNC Columns<T, RANK> columns_of(const device T* tensor, const thread Params& prm, int block,
                                       const thread Tile<RANK>& t, int batch, int head) {
  Columns<T, RANK> c;
  long at = batch * prm[block] + head * prm[block + 1];
  NA_UNROLL for (int a = 0; a < RANK; ++a) {
    at += (t.box[a].low * t.step[a] + t.column_origin[a]) * prm[block + 2 + a];
    c.step[a] = prm[block + 2 + a] * t.step[a];
  }
  c.channel = prm.channel(block);
  c.box = tensor + at;
  return c;
}

// Which keys of a batch item may be seen (MASKED): one bit for each; every line of keys along x begins a new word
template <int RANK>
struct KeyMask {
  const device int* words;
  long line[RANK];  // words between two tokens, on every axis but x
  METAL_FUNC bool allows(const thread int* token) const thread {
    long at = token[RANK - 1] / 32;
    NA_UNROLL for (int a = 0; a < RANK - 1; ++a) at += token[a] * line[a];
    return (words[at] >> (token[RANK - 1] % 32) & 1) != 0;
  }
};

template <int RANK>
METAL_FUNC KeyMask<RANK> key_mask_of(const device int* key_mask, const thread Params& prm, int batch) {
  KeyMask<RANK> mask;
  long words = (prm[kKeyShape + RANK - 1] + 31) / 32;
  NA_UNROLL for (int a = RANK - 2; a >= 0; --a) {
    mask.line[a] = words;
    words *= prm[kKeyShape + a];
  }
  mask.words = key_mask + batch * words;
  return mask;
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

// Pitch of one staged token: 16 bytes of padding against bank conflicts
template <typename T, int DP>
METAL_FUNC constexpr int pitch() {
  return DP + 16 / int(sizeof(T));
}

// A part of the box to copy: `length` tokens of each of n_rows rows, from row row0 and column x0 on; then `tail` tokens
// of zeros
struct Piece {
  int row0;
  int n_rows;
  int x0;
  int length;
  int tail;
};

template <typename T, int RANK, int DP, int THREADS, bool WIDE>
METAL_FUNC void stage(threadgroup T* dst, const thread Columns<T, RANK>& src, const thread Tile<RANK>& t, Piece piece,
                      int dim, int thread_id) {
  typedef TokenCopy<T, DP, WIDE> Copy;
  constexpr int PITCH = pitch<T, DP>();
  const int part = thread_id % Copy::LANES;
  int key = thread_id / Copy::LANES;
  BoxRow<RANK> row;
  row.set(t, piece.row0);
  for (int r = 0; r < piece.n_rows; ++r) {
    const device T* from = src.box + piece.x0 * src.step[RANK - 1];
    NA_UNROLL for (int a = 0; a < RANK - 1; ++a) from += (row.pos[a] - t.box[a].low) * src.step[a];
    for (; key < piece.length; key += THREADS / Copy::LANES) {
      Copy::copy(dst + (r * piece.length + key) * PITCH, from + key * src.step[RANK - 1], dim, src.channel, part);
    }
    key -= piece.length;  // threads left over from this row start in the next one
    row.advance(t);
  }
  for (; key < piece.tail; key += THREADS / Copy::LANES) {
    Copy::clear(dst + (piece.n_rows * piece.length + key) * PITCH, part);
  }
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

// A chunk of a walk: rows [row0, row0 + n_rows) of the tile's box, columns from x0 on. Its bricks begin in `seg` columns,
// and `length` columns of each row are staged. rel: the patch's first column, from the box's.
struct Chunk {
  int row0;
  int n_rows;
  int x0;
  int seg;
  int length;
  int rel;
};

// N pairs of neighbouring channels of one token, as 4-byte words, which a lane loads at once: N is 1, 2 or 4
template <int N>
struct Words {
  typedef vec<uint, N> type;
  static METAL_FUNC uint at(type words, int i) { return words[i]; }
};
template <>
struct Words<1> {
  typedef uint type;
  static METAL_FUNC uint at(type word, int i) { return word; }
};

// Two channels of 16 bits out of a word. Of float no load has several pairs, and this is never called.
template <typename T, int BYTES = sizeof(T)>
struct Halves {
  static METAL_FUNC Pair<T> of(uint word) { return as_type<Pair<T>>(word); }
};
template <typename T>
struct Halves<T, 4> {
  static METAL_FUNC Pair<T> of(uint word) { return Pair<T>(T(0)); }
};

// How many products along one load serves. It does not matter which 8 channels a product makes, so those of a lane may
// lie side by side in several products: 16 bytes are loaded at once instead of 4 times 4. From device memory that takes
// less time; staged, longer loads took more (benchmarks/gpu).
template <typename C, int DP>
METAL_FUNC constexpr int products_along() {
  return C::STAGE || !C::WIDE || sizeof(typename C::T) != 2 ? 1 : (DP / 8 % 4 == 0 ? 4 : 2);
}

// The first of the two channels of product i in a lane whose fragment column is c
template <int N>
METAL_FUNC int channel_along(int i, int c) {
  return i / N * 8 * N + c * N + i % N * 2;
}

// Offsets of three columns, those of a lane's fragments: across (first, second) and along (own)
struct Scattered {
  long first;
  long second;
  long own;
};

// Fragments of staged tokens; `at` is the offset of the brick's first token. Tokens start at 16-byte boundaries and
// `along` has an even d, so its two channels are one load; likewise below where WIDE.
template <typename T, int DP>
struct Staged {
  const threadgroup T* tokens;
  METAL_FUNC Pair<T> across(int at, int c, int d, int last) const thread {
    const int i = at + c * pitch<T, DP>() + d;
    return Pair<T>(tokens[i], tokens[i + pitch<T, DP>()]);
  }
  template <int N>
  METAL_FUNC void along(thread Pair<T>* pairs, int at, int r, int d, int last) const thread {
    pairs[0] = *(const threadgroup Pair<T>*)(tokens + at + r * pitch<T, DP>() + d);  // N is 1
  }
};

// Fragments straight from device memory; the token at `last` stands in for those past it
template <typename T, bool WIDE>
struct Direct {
  const device T* tokens;
  long step;
  long channel;
  int dim;
  METAL_FUNC Pair<T> across(long at, int c, int d, int last) const thread {
    if (!WIDE && d >= dim) return Pair<T>(T(0));
    at += d * channel;
    return Pair<T>(tokens[at + min(c, last) * step], tokens[at + min(c + 1, last) * step]);
  }
  template <int N>
  METAL_FUNC void along(thread Pair<T>* pairs, long at, int r, int d, int last) const thread {
    channels<N>(pairs, at + min(r, last) * step + d * channel, d);
  }
  // Channels from d on, of which the first is at i
  template <int N>
  METAL_FUNC void channels(thread Pair<T>* pairs, long i, int d) const thread {
    if (N != 1) {
      typedef Words<N> W;
      const typename W::type words = *(const device typename W::type*)(tokens + i);
      NA_UNROLL for (int n = 0; n < N; ++n) pairs[n] = Halves<T>::of(W::at(words, n));
    } else if (WIDE) {
      pairs[0] = *(const device Pair<T>*)(tokens + i);
    } else {
      pairs[0] = Pair<T>(d < dim ? tokens[i] : T(0), d + 1 < dim ? tokens[i + channel] : T(0));
    }
  }
  METAL_FUNC Pair<T> across(Scattered at, int c, int d, int last) const thread {
    if (!WIDE && d >= dim) return Pair<T>(T(0));
    return Pair<T>(tokens[at.first + d * channel], tokens[at.second + d * channel]);
  }
  template <int N>
  METAL_FUNC void along(thread Pair<T>* pairs, Scattered at, int r, int d, int last) const thread {
    channels<N>(pairs, at.own + d * channel, d);
  }
};

// Where the walk reads its two sides
template <typename C, bool STAGE = C::STAGE>
struct Sources {
  typedef typename C::T T;
  template <int RANK>
  static METAL_FUNC Staged<T, C::DA> a(const thread Sides<C, RANK>& sides) {
    return {sides.staged_a};
  }
  template <int RANK>
  static METAL_FUNC Staged<T, C::DB> b(const thread Sides<C, RANK>& sides) {
    return {sides.staged_b};
  }
};
template <typename C>
struct Sources<C, false> {
  typedef Direct<typename C::T, C::WIDE> Source;
  template <int RANK>
  static METAL_FUNC Source a(const thread Sides<C, RANK>& sides) {
    return {sides.a.box, sides.a.step[RANK - 1], sides.a.channel, sides.dim_a};
  }
  template <int RANK>
  static METAL_FUNC Source b(const thread Sides<C, RANK>& sides) {
    return {sides.b.box, sides.b.step[RANK - 1], sides.b.channel, sides.dim_b};
  }
};

}  // namespace na
