// The split operations: logits of window slots, and weights of window slots times values.
//
//   logits        slots[i, slot] = factor * q[i].k[j] + bias        j the key of the slot; `empty` where it holds none
//   weigh_keys    out[i] = factor * sum_slot slots[i, slot] v[j]
//   weigh_queries out[j] = factor * sum_i slots[i, slot of j] x[i]   i: the queries whose windows hold j
//
//   slots [B, *shape, H, prod(w)], row-major over the window; slot t of an axis is the key at start + t
//
// The gradients are these same three: of qk, dQ is weigh_keys of (logits_grad, k), dK is weigh_queries of
// (logits_grad, q), with factor = scale, and dRpb sums logits_grad (rpb.h); of av, attn_grad is logits of (dO, v) with
// empty slots 0, and dV is weigh_queries of (attn, dO).
// Slots that hold no key are never read. Source: NATTEN (arXiv 2204.07143).
#pragma once

#include "rpb.h"

namespace natten {
namespace NATTEN_ISA {

inline int64_t window_slots(const Problem& p) { return product(p.w); }

// Lanes are queries: slot = sum (key - start of the lane's window); transposed: lanes are keys, columns queries
template <typename C>
void index_slots(PairIndex<C>& index, const Lanes<C>& lanes, const Walk& walk) {
  int64_t step = 1;
  for (int lane = 0; lane < C::N; ++lane) index.lane[lane] = 0;
  index.from_start = walk.transposed;
  for (int a = 2; a >= 0; --a) {
    index.step[a] = step;
    const Axis& axis = index.axis[a] = walk.axis[a];
    index.length[a] = na::group_length(axis.full, lanes.row_origin[a] + axis.row_start, axis.d);
    for (int lane = 0; lane < C::N; ++lane) {
      index.lane[lane] += (walk.transposed ? lanes.row[a][lane] : -int64_t(lanes.columns_of(a, lane).low)) * step;
    }
    step *= axis.w;
  }
}

// The slots of the pairs of a block
template <typename C>
struct SlotAccess {
  typedef typename C::T T;
  const Tensor& tensor;
  const PairIndex<C>& index;
  const Block<C>& block;
  char* const* rows;  // slots of each lane's query; of each column's where the walk is transposed
  const bool* live;
  Vector<T>* pairs;
};

template <typename C>
struct ReadSlots : SlotAccess<C> {
  typedef typename C::T T;
  // Unseen pairs read as 0
  template <typename E>
  NATTEN_INLINE void run() const {
    constexpr int V = C::V, W = C::W;
    for (int i = 0; i < this->block.count; ++i) {
      for (int v = this->block.on.first; v < this->block.on.end(); ++v) {
        alignas(64) T values[W];
        for (int l = 0; l < W; ++l) {
          const int lane = v * W + l;
          const int64_t slot = this->block.slot[i] + this->index.lane[lane];
          const E* row = reinterpret_cast<const E*>(this->rows[this->index.from_start ? i : lane]);
          values[l] = this->block.sees(i, v, l) ? widen(row[slot * this->tensor.channel]) : T(0);
        }
        this->pairs[i * V + v] = load(values);
      }
    }
  }
};

template <typename C>
struct WriteSlots : SlotAccess<C> {
  typename C::T factor;

  template <typename E>
  NATTEN_INLINE void run() const {
    constexpr int V = C::V, W = C::W;
    for (int i = 0; i < this->block.count; ++i) {
      for (int v = this->block.on.first; v < this->block.on.end(); ++v) {
        for (int l = 0; l < W; ++l) {
          const int lane = v * W + l;
          if (!this->live[lane] || !this->block.sees(i, v, l)) continue;
          const int64_t slot = this->block.slot[i] + this->index.lane[lane];
          E* row = reinterpret_cast<E*>(this->rows[lane]);
          narrow(factor * this->pairs[i * V + v][l], row + slot * this->tensor.channel);
        }
      }
    }
  }
};

// --- logits ------------------------------------------------------------------------------------------------

template <typename T>
struct FillSlots {
  char* row;
  int64_t channel, count;
  T value;

  template <typename E>
  NATTEN_INLINE void run() const {
    for (int64_t i = 0; i < count; ++i) narrow(value, reinterpret_cast<E*>(row) + i * channel);
  }
};

template <typename C>
struct LogitsBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;
  const Tensor &query, &key, &slots;
  int dim;
  T factor, empty;

  struct Sum {
    const LogitsBody& body;
    const Scratch<C>& scratch;
    const PairIndex<C>&index, &rpb_index;
    const T* rpb;
    char* const* rows;
    const bool* live;

    void take(const Block<C>& block) const {
      dots<C>(block.on, scratch.lanes_a, block.a, block.a, block.count, body.dim, scratch.pairs_a);
      if (rpb) add_bias(block, rpb_index, body.factor, rpb, scratch.pairs_a);
      const SlotAccess<C> access = {body.slots, index, block, rows, live, scratch.pairs_a};
      with_element<T>(body.slots.dtype, WriteSlots<C>{access, rpb ? T(1) : body.factor});
    }
  };

  // Fills the rows that have slots without a key: those of causal windows near the beginning
  void fill_empty(const Lanes<C>& lanes, char* const* rows) const {
    for (int lane = 0; lane < C::N; ++lane) {
      bool whole = true;
      for (int a = 0; a < 3; ++a) {
        const Span window = lanes.columns_of(a, lane);
        whole = whole && window.high - window.low == walk.axis[a].w;
      }
      if (!lanes.live[lane] || whole) continue;
      with_element<T>(slots.dtype, FillSlots<T>{rows[lane], slots.channel, window_slots(op.problem), empty});
    }
  }

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch) const {
    const int batch = unit.batch, kv_head = unit.head / op.problem.group_heads;
    char* rows[C::N];
    lanes.addresses(slots, batch, unit.head, rows);
    fill_empty(lanes, rows);
    lanes.read(query, batch, unit.head, dim, T(1), scratch.rows, scratch.lanes_a);
    PairIndex<C> index, rpb_index;
    index_slots(index, lanes, walk);
    Columns<C> sides;
    sides.a = side_of(key, batch, kv_head, lanes, dim, scratch.columns_a);
    sides.slot = &index;
    const T* rpb = op.rpb ? rpb_of_head<T>(op, unit.head) : nullptr;
    if (rpb) {
      index_rpb(rpb_index, lanes, op.problem, false);
      sides.rpb = &rpb_index;
    }
    const Sum sum = {*this, scratch, index, rpb_index, rpb, rows, lanes.live};
    ColumnWalk<C, const Sum> columns(lanes, scratch.patch.marks, sum);
    columns.patch(sides);
  }
};

template <typename C>
int logits(const Operands& op, const Tensor& query, const Tensor& key, const Tensor& slots, int dim,
           typename C::T factor, typename C::T empty) {
  const Walk walk = plan_walk<C>(op.problem, false);
  const LogitsBody<C> body = {op, walk, query, key, slots, dim, factor, empty};
  return launch_walk<C>(body, walk, op.problem, 0, dim, 0);
}

// --- weights times values or queries -----------------------------------------------------------------------

template <typename C>
struct WeighBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;
  const Tensor &slots, &columns, &out;
  int dim;
  T factor;

  struct Sum {
    const WeighBody& body;
    const Scratch<C>& scratch;
    const PairIndex<C>& index;
    char* const* lane_rows;
    Totals<C> out;
    Stretches stretches = {};

    void take(const Block<C>& block) {
      char* const* rows = body.walk.transposed ? block.slots : lane_rows;
      with_element<T>(body.slots.dtype, ReadSlots<C>{{body.slots, index, block, rows, nullptr, scratch.pairs_a}});
      accumulate<C>(block.on, scratch.pairs_a, block.b, block.ranges, body.dim, scratch.sums_b);
      if (stretches.end()) out.end_stretch(nullptr);
    }

    void end() {
      if (stretches.several()) out.end_stretch(nullptr), out.fold();
    }
  };

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch) const {
    constexpr int V = C::V;
    const int group = op.problem.group_heads, batch = unit.batch;
    char* rows[C::N];
    PairIndex<C> index;
    index_slots(index, lanes, walk);
    if (!walk.transposed) lanes.addresses(slots, batch, unit.head, rows);
    Sum sum = {*this, scratch, index, rows, scratch.sums_of_b(dim)};
    sum.out.begin();
    ColumnWalk<C, Sum> walker(lanes, scratch.patch.marks, sum);
    const int first = walk.transposed ? unit.head * group : unit.head / group;
    for (int head = first; head < first + (walk.transposed ? group : 1); ++head) {
      Columns<C> sides;
      sides.b = side_of(columns, batch, head, lanes, dim, scratch.columns_b);
      if (walk.transposed) sides.slots = side_of<T>(slots, batch, head, lanes, 0, nullptr);
      sides.slot = &index;
      walker.patch(sides);
    }
    sum.end();
    Vector<T> factors[V];
    for (int v = 0; v < V; ++v) factors[v] = splat(factor);
    lanes.write(out, batch, unit.head, dim, factors, scratch.sums_b);
  }
};

template <typename C>
int weigh(const Operands& op, bool queries, const Tensor& slots, const Tensor& columns, const Tensor& out, int dim,
          typename C::T factor) {
  const Walk walk = plan_walk<C>(op.problem, queries);
  const WeighBody<C> body = {op, walk, slots, columns, out, dim, factor};
  return launch_walk<C>(body, walk, op.problem, 0, 0, dim);
}

// --- gradient of rpb ------------------------------------------------------------------------------------

template <typename C>
struct SlotRpbBody {
  typedef typename C::T T;
  const Operands& op;
  const Walk& walk;

  struct Sum {
    const SlotRpbBody& body;
    const Scratch<C>& scratch;
    const PairIndex<C>&index, &rpb_index;
    char* const* rows;
    double* table;

    void take(const Block<C>& block) const {
      const Tensor& slots = body.op.slots_grad;
      with_element<T>(slots.dtype, ReadSlots<C>{{slots, index, block, rows, nullptr, scratch.pairs_a}});
      add_to_table(block, rpb_index, scratch.pairs_a, table);
    }
  };

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>& scratch, double* table) const {
    char* rows[C::N];
    lanes.addresses(op.slots_grad, unit.batch, unit.head, rows);
    PairIndex<C> index, rpb_index;
    index_slots(index, lanes, walk);
    index_rpb(rpb_index, lanes, op.problem, false);
    Columns<C> sides;
    sides.slot = &index, sides.rpb = &rpb_index;
    const Sum sum = {*this, scratch, index, rpb_index, rows, table};
    ColumnWalk<C, const Sum> columns(lanes, scratch.patch.marks, sum);
    columns.patch(sides);
  }
};

// --- the operations and their gradients --------------------------------------------------------------------

template <typename C>
int qk(const Operands& op) {
  typedef typename C::T T;
  const T minus_infinity = -T(__builtin_inff());
  return logits<C>(op, op.query, op.key, op.slots, op.problem.dim, T(op.problem.scale), minus_infinity);
}

template <typename C>
int qk_backward(const Operands& op) {
  typedef typename C::T T;
  const Problem& p = op.problem;
  const T scale = T(p.scale);
  int status = NATTEN_OK;
  if (op.query_grad.data) status = weigh<C>(op, false, op.slots_grad, op.key, op.query_grad, p.dim, scale);
  if (status == NATTEN_OK && op.key_grad.data) {
    status = weigh<C>(op, true, op.slots_grad, op.query, op.key_grad, p.dim, scale);
  }
  if (status == NATTEN_OK && op.rpb_grad) {
    const Walk walk = plan_walk<C>(p, false);
    status = launch_parts<C>(SlotRpbBody<C>{op, walk}, walk, op, 0, 0);
  }
  return status;
}

template <typename C>
int av(const Operands& op) {
  typedef typename C::T T;
  return weigh<C>(op, false, op.slots, op.value, op.out, op.problem.dim_v, T(1));
}

template <typename C>
int av_backward(const Operands& op) {
  typedef typename C::T T;
  const Problem& p = op.problem;
  int status = NATTEN_OK;
  if (op.slots_grad.data) status = logits<C>(op, op.out_grad, op.value, op.slots_grad, p.dim_v, T(1), T(0));
  if (status == NATTEN_OK && op.value_grad.data) {
    status = weigh<C>(op, true, op.slots, op.out_grad, op.value_grad, p.dim_v, T(1));
  }
  return status;
}

}  // namespace NATTEN_ISA
}  // namespace natten
