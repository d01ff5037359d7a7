// What of a walk shows in no result: where the rows that are read ahead lie, and which blocks of a patch are kept for
// its heads. Compiled with the headers of one instruction set (NATTEN_ISA); prints what fails and returns 1.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "rpb.h"

namespace natten {
namespace NATTEN_ISA {
namespace {

typedef Narrow<float> C;

int failures = 0, checked = 0, moved = 0, stayed = 0;

void check(bool holds, const char* what) {
  ++checked;
  if (!holds && ++failures < 20) printf("FAILED: %s\n", what);
}

Problem attention(int rank, int length, int w, int d, int heads, int kv_heads) {
  natten_problem p = {};
  p.dtype = NATTEN_FLOAT32, p.rank = rank, p.batch = 2, p.heads = heads, p.kv_heads = kv_heads;
  p.head_dim = p.head_dim_v = 1;
  for (int a = 0; a < rank; ++a) {
    const int n = a + 1 == rank ? length : 5;
    p.full_shape[a] = p.query_shape[a] = p.key_shape[a] = n;
    p.kernel_size[a] = a + 1 == rank ? w : 3, p.stride[a] = 1, p.dilation[a] = a + 1 == rank ? d : 1;
  }
  return pad_problem(p);
}

// --- what is read ahead --------------------------------------------------------------------------------------

// What a unit reads of a tensor, rows or columns: the head, and how far ahead the next unit's rows are said to be
struct Read {
  Unit unit;
  int head;
  int64_t ahead;
};

Tensor any_tensor() {
  Tensor t = {};
  t.dtype = NATTEN_FLOAT32, t.batch = 1 << 20, t.head = 7, t.channel = 1;
  t.axis[0] = 50000, t.axis[1] = 9000, t.axis[2] = 60;
  return t;
}

struct Recorder {
  Tensor tensor;
  std::vector<Read>*rows, *columns;

  void patch(const Lanes<C>& lanes, const Unit& unit, Scratch<C>&, double* = nullptr) const {
    rows->push_back({unit, unit.head, lanes.ahead(tensor, unit.head, lanes.next_head)});
    const int first = lanes.transposed ? unit.head * lanes.group : unit.head / lanes.group;
    for (int head = first; head < first + (lanes.transposed ? lanes.group : 1); ++head) {
      columns->push_back({unit, head, lanes.ahead(tensor, head, lanes.next_columns(head))});
    }
  }
};

bool same_line(const Unit& a, const Unit& b) {
  bool same = a.batch == b.batch && a.corner[0] == b.corner[0] && a.corner[1] == b.corner[1];
  for (int axis = 0; axis < 3; ++axis) same = same && a.group[axis] == b.group[axis];
  return same;
}

// Reads that follow one another along one line of patches
void check_ahead(const Walk& walk, const Tensor& tensor, const std::vector<Read>& reads, const char* what) {
  for (size_t i = 0; i + 1 < reads.size(); ++i) {
    const Read &now = reads[i], &next = reads[i + 1];
    if (!same_line(now.unit, next.unit) || next.unit.corner[2] < now.unit.corner[2]) continue;
    const int64_t tokens = int64_t(next.unit.corner[2] - now.unit.corner[2]) * walk.axis[2].d;
    const int64_t elements = (next.head - now.head) * tensor.head + tokens * tensor.axis[2];
    check(now.ahead == elements * 4, what);
    moved += tokens != 0, stayed += elements == 0;
  }
}

char* scratch_of(std::vector<char>& memory) {
  memory.resize(size_t(Scratch<C>::bytes(4, 4)) + 64);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

void test_ahead(int rank, int d, int heads, int kv_heads, bool transposed) {
  const Problem p = attention(rank, 150, 5, d, heads, kv_heads);
  const Walk walk = plan_walk<C>(p, transposed);
  std::vector<char> memory;
  std::vector<Read> rows, columns;
  const Recorder recorder = {any_tensor(), &rows, &columns};
  {
    Scratch<C> scratch(scratch_of(memory), 4, 4);
    const PatchUnits<C, Recorder> units = {walk, recorder};
    for (int64_t number = 0; number < walk.units(); ++number) units.unit(number, scratch);
  }
  check_ahead(walk, recorder.tensor, rows, "rows, patch by patch");
  check_ahead(walk, recorder.tensor, columns, "columns, patch by patch");
  if (transposed) return;
  rows.clear(), columns.clear();
  Scratch<C> scratch(scratch_of(memory), 4, 4);
  std::vector<double> tables(size_t(walk.heads));
  const PartUnits<C, Recorder> parts = {walk, recorder, tables.data(), 1, 1};
  for (int64_t number = 0; number < walk.heads; ++number) parts.unit(number, scratch);
  check_ahead(walk, recorder.tensor, rows, "rows, head by head");
  check_ahead(walk, recorder.tensor, columns, "columns, head by head");
}

// --- what is kept --------------------------------------------------------------------------------------------

struct Counter {
  int blocks = 0, columns = 0;
  void take(const Block<C>& block) { ++blocks, columns += block.count; }
};

// Windows of so many columns for the first patch of a long axis: blocks of 64, all of which are kept if they fit
void test_kept(int blocks, int more, bool kept) {
  const int rows = C::N, box = blocks * kBlock + more, window = box - (rows - 1);
  const Problem p = attention(1, 4 * window, window, 1, 2, 2);
  const Walk walk = plan_walk<C>(p, false);
  check(walk.axis[2].patch == rows, "the patch of a sequence");
  std::vector<char> memory;
  Scratch<C> scratch(scratch_of(memory), 4, 4);
  const int64_t middle = walk.patches / 2;  // where windows do not shift
  Counter first, second;
  scratch.patch.find(walk, middle, 0, 1);
  ColumnWalk<C, Counter>(scratch.patch.lanes, scratch.patch.marks, first).patch(Columns<C>());
  check(scratch.patch.marks.kept == kept, "blocks that fit are kept, and only those");
  scratch.patch.find(walk, middle, 1, 0);
  ColumnWalk<C, Counter>(scratch.patch.lanes, scratch.patch.marks, second).patch(Columns<C>());
  check(first.columns == box && first.blocks == blocks + (more > 0), "columns of the first head");
  check(second.columns == box && second.blocks == first.blocks, "columns of the second head");
}

int run() {
  for (int rank = 1; rank <= 3; ++rank) {
    for (int d = 1; d <= 2; ++d) {
      for (int heads = 1; heads <= 4; heads *= 2) {
        for (int kv_heads = 1; kv_heads <= heads; kv_heads *= 2) {
          test_ahead(rank, d, heads, kv_heads, false), test_ahead(rank, d, heads, kv_heads, true);
        }
      }
    }
  }
  check(moved > 1000 && stayed > 1000, "the next patch, and the same columns for another head");
  const int most = PatchMarks<C>::kBlocks;
  test_kept(most - 1, 0, true), test_kept(most, 0, true), test_kept(most, 1, false), test_kept(most + 1, 0, false);
  printf("%d checks: %d failures\n", checked, failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace NATTEN_ISA
}  // namespace natten

int main() { return natten::NATTEN_ISA::run(); }
