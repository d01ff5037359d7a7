// Where the elements of cooperative tensors lie (tensor_layout.cpp)
#pragma once
#include <vector>
#include "tensor_interface.h"

namespace runtime {

constexpr int kNoElement = -1;

struct TensorLayout {
  std::vector<int> element;  // [lane][slot]: row * columns + column, or kNoElement
  std::vector<int> row;      // [lane][slot of a row's value]: a row of which the lane has elements, or kNoElement
};

const TensorLayout& tensor_layout(int role, int rows, int columns, int capacity);

}  // namespace runtime
