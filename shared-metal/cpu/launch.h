// How a walk is run: scratch memory for each worker, units of work for the pool.
#pragma once

#include "columns.h"
#include "pool.h"
#include "totals.h"

namespace natten {
namespace NATTEN_ISA {

// A block of 64-byte aligned memory, freed with its owner; data is NULL if the allocation failed
class Memory {
 public:
  explicit Memory(int64_t bytes) : data_(allocate(bytes > 0 ? bytes : 1)) {}
  ~Memory() { release(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_;
};

// Tensors of one fused or split operation
struct Operands {
  Problem problem;
  Tensor query, key, value, additional_keys, additional_values, out, lse, out_grad, lse_grad;
  Tensor query_grad, key_grad, value_grad, additional_keys_grad, additional_values_grad;
  Tensor slots, slots_grad;  // attn or logits of the split operations
  Tensor shift, norm, delta;  // backward.h: of each query row side by side, channels of one contiguous tensor
  Tensor key_mask;           // bytes, [B, *shape]
  const void* rpb = nullptr;
  void* rpb_grad = nullptr;
};

// The patch that a worker is at: its rows and its blocks, which all of its heads have in common
template <typename C>
struct Patch {
  int64_t number = -1;
  Unit unit;
  Lanes<C> lanes;
  PatchMarks<C> marks;

  // number: counted over all batch items and dilation groups. next_head: of the unit that comes next, of the same patch
  // if it is a higher one, else of the next patch.
  void find(const Walk& walk, int64_t wanted, int head, int next_head) {
    if (wanted != number) {
      number = wanted;
      unit = find_unit(walk, wanted, head);
      marks.clear();
      if (unit.inside) lanes.find(walk, unit);
    }
    unit.head = lanes.head = head, lanes.next_head = next_head;
  }
};

// One worker's scratch memory: the patch's rows of two tensors, transposed; two numbers for each pair; two sums for
// each row, with their totals; copies of rows
template <typename C>
struct Scratch {
  typedef typename C::T T;
  Vector<T>*lanes_a, *lanes_b, *pairs_a, *pairs_b;
  T *sums_a, *sums_b, *rows, *columns_a, *columns_b;
  double *totals_a, *totals_b;
  Patch<C> patch;

  static int64_t rounded(int64_t width) { return (width + C::W - 1) / C::W * C::W; }

  static int64_t bytes(int dim_a, int dim_b) {
    const int64_t a = rounded(dim_a), b = rounded(dim_b), n = C::N;
    const int64_t numbers = 2 * (a + b) * n + 2 * kBlock * n + (a > b ? a : b) * n + kBlock * (a + b);
    return int64_t(sizeof(T)) * numbers + int64_t(sizeof(double)) * (a + b) * n;
  }

  Scratch(char* memory, int dim_a, int dim_b) {
    const int64_t a = rounded(dim_a), b = rounded(dim_b), v = C::V;
    Vector<T>* at = reinterpret_cast<Vector<T>*>(memory);
    lanes_a = at, lanes_b = lanes_a + a * v;
    pairs_a = lanes_b + b * v, pairs_b = pairs_a + kBlock * v;
    sums_a = reinterpret_cast<T*>(pairs_b + kBlock * v), sums_b = sums_a + a * C::N;
    rows = sums_b + b * C::N;
    columns_a = rows + (a > b ? a : b) * C::N;
    columns_b = columns_a + kBlock * a;
    totals_a = reinterpret_cast<double*>(columns_b + kBlock * b);
    totals_b = totals_a + a * C::N;
  }

  // The sums of the patch's rows over its columns, channels of A or of B
  Totals<C> sums_of_a(int dim_a) const { return {sums_a, totals_a, rounded(dim_a)}; }
  Totals<C> sums_of_b(int dim_b) const { return {sums_b, totals_b, rounded(dim_b)}; }
};

// Multiply-accumulates below which a second thread costs more than it saves
constexpr int64_t kSmall = 200000;

// Runs body.unit(number, scratch) for number = 0 .. units-1 on the pool. work: multiply-accumulates of all units.
template <typename C, typename Body>
int launch(const Body& body, int64_t units, int64_t work, int dim_a, int dim_b, int threads) {
  struct Job {
    const Body* body;
    char* memory;
    int64_t bytes;
    int dim_a, dim_b;
    static void run(void* context, int64_t first, int64_t last, int worker) {
      const Job& job = *static_cast<const Job*>(context);
      Scratch<C> scratch(job.memory + worker * job.bytes, job.dim_a, job.dim_b);
      for (int64_t unit = first; unit < last; ++unit) job.body->unit(unit, scratch);
    }
  };
  if (units == 0) return NATTEN_OK;
  const int workers = work < kSmall ? 1 : pool_workers(threads, units);
  const int64_t bytes = (Scratch<C>::bytes(dim_a, dim_b) + 127) / 128 * 128;
  char* const memory = static_cast<char*>(scratch_memory(workers * bytes));
  if (!memory) return NATTEN_NO_MEMORY;
  Job job = {&body, memory, bytes, dim_a, dim_b};
  pool_run(units, workers, Job::run, &job);
  return NATTEN_OK;
}

// The patches of a walk as units: calls body.patch(lanes, unit, scratch) with the rows of each
template <typename C, typename Body>
struct PatchUnits {
  const Walk& walk;
  const Body& body;

  void unit(int64_t number, Scratch<C>& scratch) const {
    Patch<C>& patch = scratch.patch;
    const int head = int(number % walk.heads);
    patch.find(walk, number / walk.heads, head, (head + 1) % walk.heads);
    if (patch.unit.inside) body.patch(patch.lanes, patch.unit, scratch);
  }
};

// Multiply-accumulates of a walk that reads `width` channels for each pair
template <typename C>
int64_t walk_work(const Walk& walk, int additional, int64_t width) {
  double pairs = 1;
  for (int a = 0; a < 3; ++a) pairs *= double(columns_read(walk.axis[a], walk.axis[a].panel)) * walk.axis[a].groups();
  pairs *= C::PANEL_LANES;
  pairs += double(walk.patches) * double(walk.groups) * C::N * additional;
  const double work = pairs * walk.batch * walk.heads * double(width);
  return work < 1e18 ? int64_t(work) : int64_t(1e18);
}

template <typename C, typename Body>
int launch_walk(const Body& body, const Walk& walk, const Problem& p, int additional, int dim_a, int dim_b) {
  const int64_t work = walk_work<C>(walk, additional, dim_a + dim_b);
  return launch<C>(PatchUnits<C, Body>{walk, body}, walk.units(), work, dim_a, dim_b, p.threads);
}

// Walks over the additional keys and values, before a patch's own columns
template <typename C, typename Walker>
void walk_additional(const Operands& op, int batch, int kv_head, Scratch<C>& scratch, Walker& columns) {
  const Problem& p = op.problem;
  if (p.additional == 0) return;
  const int origin[3] = {0, 0, 0}, step[3] = {1, 1, 1};
  const Segment segment = {{0, C::V}, {{0, 1}, {0, 1}, {0, p.additional}}, {{0, 1}, {0, 1}, {0, p.additional}}};
  Columns<C> sides;
  sides.a = side_of(op.additional_keys, batch, kv_head, origin, step, p.dim, scratch.columns_a);
  sides.b = side_of(op.additional_values, batch, kv_head, origin, step, p.dim_v, scratch.columns_b);
  columns.others(segment, sides);
}

}  // namespace NATTEN_ISA
}  // namespace natten
