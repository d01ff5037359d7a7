// What the shim's tensor operations and the runtime share. Plain types, C linkage.
#pragma once

enum metal_emulator_tensor_type { METAL_EMULATOR_HALF, METAL_EMULATOR_BFLOAT, METAL_EMULATOR_FLOAT };

// What a matrix is to a product; ROWS: one value for each row of a destination
enum metal_emulator_tensor_role {
  METAL_EMULATOR_MEMORY,
  METAL_EMULATOR_LEFT,
  METAL_EMULATOR_DESTINATION,
  METAL_EMULATOR_ROWS,
};

// A matrix as one lane gives it: a tensor in memory, or the lane's own elements of a cooperative tensor
struct metal_emulator_operand {
  const void* data;
  int type;
  int role;
  int capacity;
  long extent[2];  // columns, rows
  long stride[2];
};

struct metal_emulator_product {
  metal_emulator_operand left;
  metal_emulator_operand right;
  float* destination;
  int capacity;  // of the destination
  int m, n, k;   // k < 0: as many as the left tensor has
  bool transpose_left, transpose_right, relaxed, accumulate;
};
