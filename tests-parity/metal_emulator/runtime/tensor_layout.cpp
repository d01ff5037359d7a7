// Where the elements of cooperative tensors lie: one layout of many, by the seed of the launch. Metal leaves it open,
// so a kernel is right only if it is right in all of them. seed % 4 is
//
//   0  any element in any slot of any lane       2  fragments of 16x16, as M5's lanes are known to hold them
//   1  blocks of rows and columns, shuffled      3  fragments of 8x8, two rows of one column in a lane
//
// In 0 and 1 the tensors of different roles have different layouts, and whether one becomes the other without passing
// through memory is drawn as well.
#include "tensor_layout.h"
#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include "runtime.h"

namespace runtime {
namespace {

enum Kind { ANYWHERE, BLOCKS, FRAGMENTS_16, FRAGMENTS_8 };

Kind kind() { return Kind(g.options.seed % 4); }

struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  int below(int n) { return int(next() % uint64_t(n)); }
  std::vector<int> permutation(int n) {
    std::vector<int> v(n);
    std::iota(v.begin(), v.end(), 0);
    for (int i = n - 1; i > 0; i--) std::swap(v[i], v[below(i + 1)]);
    return v;
  }
};

Random random_for(int a, int b, int c) {
  Random random = {uint64_t(g.options.seed) * 1000003 + a * 8191 + b * 131 + c};
  random.next();
  return random;
}

void put_anywhere(TensorLayout& l, int rows, int columns, int capacity, Random& random) {
  const std::vector<int> slots = random.permutation(int(kLanes) * capacity);
  for (int e = 0; e < rows * columns; e++) l.element[slots[e]] = e;
}

// Each lane gets a block of neighbouring rows and columns, in an order of rows and columns that is drawn
void put_in_blocks(TensorLayout& l, int rows, int columns, int capacity, Random& random) {
  const int each = rows * columns / int(kLanes);
  std::vector<int> heights;
  for (int h = 1; h <= each; h++) {
    if (each % h == 0 && rows % h == 0 && columns % (each / h) == 0) heights.push_back(h);
  }
  const int high = heights[random.below(int(heights.size()))];
  const int wide = each / high;
  const int across = columns / wide;
  const std::vector<int> lanes = random.permutation(int(kLanes));
  const std::vector<int> row_at = random.permutation(rows);
  const std::vector<int> column_at = random.permutation(columns);
  for (int block = 0; block < int(kLanes); block++) {
    const std::vector<int> slots = random.permutation(capacity);
    for (int i = 0; i < each; i++) {
      const int r = row_at[block / across * high + i / wide];
      const int c = column_at[block % across * wide + i % wide];
      l.element[lanes[block] * capacity + slots[i]] = r * columns + c;
    }
  }
}

void put_in_fragments(TensorLayout& l, int rows, int columns, int capacity, int side) {
  for (int lane = 0; lane < int(kLanes); lane++) {
    int slot = lane * capacity;
    for (int top = 0; top < rows; top += side) {
      for (int left = 0; left < columns; left += side) {
        for (int j = 0; j < side * side / int(kLanes); j++) {
          const int quad = lane / 4;
          const int r = side == 16 ? ((quad & 4) | (lane / 2 & 3)) + j / 4 * 8 : lane / 8 * 2 + j;
          const int c = side == 16 ? ((quad & 2) | (lane & 1)) * 4 + j % 4 : lane % 8;
          l.element[slot++] = (top + r) * columns + left + c;
        }
      }
    }
  }
}

// Slots for the value of each row: a lane has those of the rows that it has elements of
void put_rows(TensorLayout& l, int rows, int columns, int capacity, Random& random) {
  for (int lane = 0; lane < int(kLanes); lane++) {
    std::vector<int> slots(rows);
    std::iota(slots.begin(), slots.end(), 0);
    if (kind() == ANYWHERE || kind() == BLOCKS) slots = random.permutation(rows);
    std::vector<bool> held(rows, false);
    size_t next = 0;
    for (int i = 0; i < capacity; i++) {
      const int e = l.element[lane * capacity + i];
      if (e == kNoElement || held[e / columns]) continue;
      held[e / columns] = true;
      l.row[lane * rows + slots[next++]] = e / columns;
    }
  }
}

}  // namespace

const TensorLayout& tensor_layout(int role, int rows, int columns, int capacity) {
  static std::map<std::tuple<uint32_t, int, int, int, int>, TensorLayout> known;
  if (known.size() > 4096) known.clear();
  auto [at, fresh] = known.try_emplace({g.options.seed, role, rows, columns, capacity});
  TensorLayout& l = at->second;
  if (!fresh) return l;
  Random random = random_for(role, rows, columns);
  l.element.assign(kLanes * capacity, kNoElement);
  l.row.assign(kLanes * rows, kNoElement);
  const int side = kind() == FRAGMENTS_16 ? 16 : 8;
  if (kind() == ANYWHERE) {
    put_anywhere(l, rows, columns, capacity, random);
  } else if (kind() == BLOCKS || rows % side || columns % side) {
    put_in_blocks(l, rows, columns, capacity, random);
  } else {
    put_in_fragments(l, rows, columns, capacity, side);
  }
  put_rows(l, rows, columns, capacity, random);
  return l;
}

}  // namespace runtime

using namespace runtime;

static int lane_now() { return int(current_fiber().lane); }

extern "C" int metal_emulator_tensor_element(int role, int rows, int columns, int capacity, int slot) {
  return tensor_layout(role, rows, columns, capacity).element[lane_now() * capacity + slot];
}

extern "C" int metal_emulator_tensor_row(int rows, int columns, int capacity, int slot) {
  return tensor_layout(METAL_EMULATOR_DESTINATION, rows, columns, capacity).row[lane_now() * rows + slot];
}

// The slot of this lane with a row's value; the first one if it has none of that row
extern "C" int metal_emulator_tensor_row_slot(int rows, int columns, int capacity, int row) {
  for (int i = 0; i < rows; i++) {
    if (metal_emulator_tensor_row(rows, columns, capacity, i) == row) return i;
  }
  return 0;
}

// Whether a destination can be the left side of another product as it is
extern "C" bool metal_emulator_tensor_converts(int rows, int columns) {
  const bool drawn = kind() == ANYWHERE || kind() == BLOCKS;
  return !drawn || (random_for(7, rows, columns).next() & 1);
}
