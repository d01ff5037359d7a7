// What kernels call: the only names that the shim and the runtime share. Plain types, C linkage.
#pragma once
#include "tensor_interface.h"

extern "C" {

// The arguments of one GPU thread: buffers, [[threadgroup(n)]] memory, and position values by the numbers of
// signature.py
struct metal_emulator_arguments {
  void* const* buffers;
  void* const* threadgroup_memory;
  unsigned position[12][3];
};

// How two values of a simdgroup reduction become one: *a = *a op *b
typedef void (*metal_emulator_combine)(void* a, const void* b);

// Calls that must stay where the source has them: not merged, not moved into branches
#define METAL_EMULATOR_CONVERGENT __attribute__((convergent, nomerge, noinline))

unsigned metal_emulator_lane();
METAL_EMULATOR_CONVERGENT void metal_emulator_threadgroup_barrier(int flags, unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_simdgroup_barrier(int flags, unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_shuffle(void* value, unsigned size, unsigned source_lane, unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_reduce(void* value, unsigned size, metal_emulator_combine combine,
                                                     unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_prefix(void* value, unsigned size, metal_emulator_combine combine,
                                                     bool inclusive, unsigned site);
METAL_EMULATOR_CONVERGENT unsigned long metal_emulator_ballot(bool vote, unsigned site);
METAL_EMULATOR_CONVERGENT unsigned long metal_emulator_active_lanes(unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_matrix_access(unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_matrix_multiply(float* d, const float* a, const float* b, const float* c,
                                                              unsigned site);
void* metal_emulator_threadgroup_variable(const void* key, unsigned long size, unsigned alignment, const char* name);
void metal_emulator_atomic_access(const volatile void* address, unsigned size, bool read, bool write);
void metal_emulator_count(const char* event);

// ---- tensor operations ----------------------------------------------------------------------------------------------
int metal_emulator_tensor_element(int role, int rows, int columns, int capacity, int slot);
int metal_emulator_tensor_row(int rows, int columns, int capacity, int slot);
int metal_emulator_tensor_row_slot(int rows, int columns, int capacity, int row);
bool metal_emulator_tensor_converts(int rows, int columns);
void metal_emulator_tensor_misuse(const char* what);
METAL_EMULATOR_CONVERGENT void metal_emulator_tensor_multiply(const metal_emulator_product* product, unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_tensor_reduce_rows(const float* from, float* to, int rows, int columns,
                                                                 int capacity, int operation, float identity,
                                                                 unsigned site);
METAL_EMULATOR_CONVERGENT void metal_emulator_tensor_convert(const float* from, int from_capacity, float* to,
                                                             int to_capacity, int rows, int columns, unsigned site);
}
