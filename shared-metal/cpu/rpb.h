// The relative positional bias: logits[i,j] += rpb[h, j - i + w - 1 per axis], and its gradient.
//
//   rpb_grad[h, offset] = sum over batch, queries i and keys j with j - i = offset of dS[i,j]
//
// The entry of a (lane, column) pair is a number of the lane plus a number of the column. For the gradient, the patches
// of a head are split into parts, whose number depends only on the problem; each part sums into a table of its own,
// column by column and lane by lane, and the tables are added in order. An entry is a sum over all queries, so
// tables are double.
#pragma once

#include "launch.h"

namespace natten {
namespace NATTEN_ISA {

inline int64_t rpb_entries(const Problem& p) {
  return (2 * int64_t(p.w[0]) - 1) * (2 * int64_t(p.w[1]) - 1) * (2 * int64_t(p.w[2]) - 1);
}

template <typename T>
const T* rpb_of_head(const Operands& op, int head) {
  return static_cast<const T*>(op.rpb) + head * rpb_entries(op.problem);
}

// transposed: lanes are keys, columns queries
template <typename C>
void index_rpb(PairIndex<C>& index, const Lanes<C>& lanes, const Problem& p, bool transposed) {
  const int sign = transposed ? -1 : 1;
  int64_t step = 1;
  for (int lane = 0; lane < C::N; ++lane) index.lane[lane] = 0;
  for (int a = 2; a >= 0; --a) {
    index.step[a] = sign * step;
    for (int lane = 0; lane < C::N; ++lane) index.lane[lane] += (p.w[a] - 1 - sign * lanes.row[a][lane]) * step;
    step *= 2 * p.w[a] - 1;
  }
}

// dot products -> logits
template <typename C>
void add_bias(const Block<C>& block, const PairIndex<C>& index, typename C::T scale, const typename C::T* table,
              VectorOf<C>* logits) {
  typedef typename C::T T;
  constexpr int V = C::V, W = C::W;
  for (int i = 0; i < block.count; ++i) {
    for (int v = block.on.first; v < block.on.end(); ++v) {
      alignas(64) T entries[W];
      for (int l = 0; l < W; ++l) {
        // an unseen pair may have no entry
        const int64_t at = block.rpb[i] + index.lane[v * W + l];
        entries[l] = table[block.sees(i, v, l) ? at : 0];
      }
      logits[i * V + v] = logits[i * V + v] * scale + load(entries);
    }
  }
}

// The sums of one part: pairs are added one by one, so the order never changes
template <typename C>
void add_to_table(const Block<C>& block, const PairIndex<C>& index, const VectorOf<C>* gradients,
                  double* table) {
  constexpr int V = C::V, W = C::W;
  for (int i = 0; i < block.count; ++i) {
    for (int v = block.on.first; v < block.on.end(); ++v) {
      for (int l = 0; l < W; ++l) {
        if (block.sees(i, v, l)) table[block.rpb[i] + index.lane[v * W + l]] += double(gradients[i * V + v][l]);
      }
    }
  }
}

// Entries of all parts' tables together: 32 MB
constexpr int64_t kTables = int64_t(1) << 22;

// Parts of a head's patches: enough to keep the threads of most machines busy, few enough to keep the tables small
inline int64_t rpb_parts(const Walk& walk, int64_t entries) {
  const int64_t patches = walk.batch * walk.groups * walk.patches, room = kTables / (walk.heads * entries) + 1;
  const int64_t wanted = (63 + walk.heads) / walk.heads, limit = wanted < room ? wanted : room;
  return patches < limit ? patches : limit;
}

// Patches of a walk as (head, part): body.patch(lanes, unit, scratch, table) with the part's table
template <typename C, typename Body>
struct PartUnits {
  const Walk& walk;
  const Body& body;
  double* tables;  // [parts, H, entries]
  int64_t parts, entries;

  void unit(int64_t number, Scratch<C>& scratch) const {
    const int64_t part = number / walk.heads;
    const int head = int(number % walk.heads);  // of all of its patches
    const int64_t patches = walk.batch * walk.groups * walk.patches;
    double* table = tables + number * entries;
    for (int64_t i = 0; i < entries; ++i) table[i] = 0;
    for (int64_t at = patches * part / parts; at < patches * (part + 1) / parts; ++at) {
      Patch<C>& patch = scratch.patch;
      patch.find(walk, at, head, head);
      if (patch.unit.inside) body.patch(patch.lanes, patch.unit, scratch, table);
    }
  }
};

// Runs a body over the walk by parts and adds their tables into op.rpb_grad
template <typename C, typename Body>
int launch_parts(const Body& body, const Walk& walk, const Operands& op, int dim_a, int dim_b) {
  typedef typename C::T T;
  const int64_t entries = rpb_entries(op.problem), all = walk.heads * entries, parts = rpb_parts(walk, entries);
  T* gradient = static_cast<T*>(op.rpb_grad);
  for (int64_t i = 0; i < all; ++i) gradient[i] = T(0);
  if (parts == 0) return NATTEN_OK;
  const Memory memory(parts * all * int64_t(sizeof(double)));
  if (!memory.data()) return NATTEN_NO_MEMORY;
  double* tables = reinterpret_cast<double*>(memory.data());
  const PartUnits<C, Body> units = {walk, body, tables, parts, entries};
  const int64_t work = walk_work<C>(walk, op.problem.additional, dim_a + dim_b);
  const int status = launch<C>(units, parts * walk.heads, work, dim_a, dim_b, op.problem.threads);
  if (status != NATTEN_OK) return status;
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < all; ++i) tables[i] += tables[part * all + i];
  }
  for (int64_t i = 0; i < all; ++i) gradient[i] = T(tables[i]);
  return NATTEN_OK;
}

}  // namespace NATTEN_ISA
}  // namespace natten
