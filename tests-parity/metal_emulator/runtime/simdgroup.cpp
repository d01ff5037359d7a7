// Operations of a simdgroup. Reductions and matrix products are computed once, by the first lane that comes back.
#include <cstring>
#include "runtime.h"

using namespace runtime;

// Values of lanes that do not take part: NaN for floats
constexpr int kUndefinedByte = 0xFF;

extern "C" unsigned metal_emulator_lane() { return current_fiber().lane; }

extern "C" void metal_emulator_shuffle(void* value, unsigned bytes, unsigned source_lane, unsigned site) {
  void* code = __builtin_return_address(0);
  Exchange* e = meet(value, bytes, SHUFFLE, site, code);
  if (source_lane < kLanes && (e->active >> source_lane & 1)) {
    memcpy(value, e->slot[source_lane], bytes);
    return;
  }
  report(INACTIVE_LANE, code, "lane %u reads lane %u, which is not active", current_fiber().lane, source_lane);
  memset(value, kUndefinedByte, bytes);
}

// Tree over the lanes, in place: neighbours first
static void reduce(Exchange* e, unsigned bytes, metal_emulator_combine combine) {
  uint32_t have = e->active;
  memcpy(e->result, e->slot, sizeof e->slot);
  for (uint32_t distance = 1; distance < kLanes; distance *= 2) {
    for (uint32_t i = 0; i < kLanes; i += 2 * distance) {
      if (!(have >> (i + distance) & 1)) continue;
      if (have >> i & 1) {
        combine(e->result[i], e->result[i + distance]);
      } else {
        memcpy(e->result[i], e->result[i + distance], bytes);
        have |= 1u << i;
      }
    }
  }
  e->reduced = true;
}

extern "C" void metal_emulator_reduce(void* value, unsigned bytes, metal_emulator_combine combine, unsigned site) {
  Exchange* e = meet(value, bytes, REDUCE, site, __builtin_return_address(0));
  if (!e->reduced) reduce(e, bytes, combine);
  memcpy(value, e->result[0], bytes);
}

// Over the lanes before this one, inclusive: and this one. An exclusive one leaves the first lane's value unchanged.
extern "C" void metal_emulator_prefix(void* value, unsigned bytes, metal_emulator_combine combine, bool inclusive,
                                      unsigned site) {
  Exchange* e = meet(value, bytes, PREFIX, site, __builtin_return_address(0));
  uint32_t lane = current_fiber().lane;
  uint32_t before = e->active & (inclusive ? (2ull << lane) - 1 : (1ull << lane) - 1);
  bool first = true;
  for (uint32_t i = 0; i < kLanes; i++) {
    if (!(before >> i & 1)) continue;
    if (first) {
      memcpy(value, e->slot[i], bytes);
    } else {
      combine(value, e->slot[i]);
    }
    first = false;
  }
}

extern "C" unsigned long metal_emulator_ballot(bool vote, unsigned site) {
  Exchange* e = meet(&vote, 1, BALLOT, site, __builtin_return_address(0));
  unsigned long lanes = 0;
  for (uint32_t i = 0; i < kLanes; i++) {
    if ((e->active >> i & 1) && e->slot[i][0]) lanes |= 1ul << i;
  }
  return lanes;
}

extern "C" unsigned long metal_emulator_active_lanes(unsigned site) {
  bool vote = true;
  return meet(&vote, 1, BALLOT, site, __builtin_return_address(0))->active;
}

extern "C" void metal_emulator_matrix_access(unsigned site) {
  char nothing = 0;
  meet(&nothing, 1, MATRIX_ACCESS, site, __builtin_return_address(0));
}

// ---- 8x8 matrices: the layout of shim/simdgroup_matrix.h -----------------------------------------------------------
struct LaneValues {
  float a[2];
  float b[2];
  float c[2];
};

static uint32_t row_of(uint32_t lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
static uint32_t col_of(uint32_t lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }

static void multiply(Exchange* e) {
  alignas(32) float a[8][8];
  alignas(32) float b[8][8];
  alignas(32) float d[8][8];
  for (uint32_t lane = 0; lane < kLanes; lane++) {
    LaneValues v;
    memcpy(&v, e->slot[lane], sizeof v);
    memcpy(&a[row_of(lane)][col_of(lane)], v.a, sizeof v.a);
    memcpy(&b[row_of(lane)][col_of(lane)], v.b, sizeof v.b);
    memcpy(&d[row_of(lane)][col_of(lane)], v.c, sizeof v.c);
  }
  for (int row = 0; row < 8; row++) {
    for (int k = 0; k < 8; k++) {
      for (int col = 0; col < 8; col++) d[row][col] += a[row][k] * b[k][col];
    }
  }
  for (uint32_t lane = 0; lane < kLanes; lane++)
    memcpy(e->result[lane], &d[row_of(lane)][col_of(lane)], sizeof(float[2]));
  e->reduced = true;
}

extern "C" void metal_emulator_matrix_multiply(float* d, const float* a, const float* b, const float* c,
                                               unsigned site) {
  LaneValues v = {{a[0], a[1]}, {b[0], b[1]}, {c[0], c[1]}};
  Exchange* e = meet(&v, sizeof v, MATRIX_MULTIPLY, site, __builtin_return_address(0));
  if (!e->reduced) multiply(e);
  memcpy(d, e->result[current_fiber().lane], sizeof(float[2]));
}
