#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace natten_mlx {

Function function_of(const std::string& name) {
  if (name == "forward") return Function::forward;
  if (name == "backward") return Function::backward;
  if (name == "qk") return Function::qk;
  if (name == "qk_backward") return Function::qk_backward;
  if (name == "av") return Function::av;
  if (name == "av_backward") return Function::av_backward;
  throw std::invalid_argument("no such function: " + name);
}

std::vector<int64_t> Launch::parameters(const std::vector<mx::array>& tensors) const {
  std::vector<int64_t> slots = params;
  for (const Strided& from : strided) {
    const mx::Strides& strides = tensors.at(from.tensor).strides();
    const int axes = static_cast<int>(strides.size()) - 3;  // of [batch, *axes, head, channel]
    slots.at(from.slot) = strides[0];
    slots.at(from.slot + 1) = strides[axes + 1];
    for (int axis = 0; axis < axes; ++axis) slots.at(from.slot + 2 + axis) = strides[axis + 1];
    slots.at(from.channel) = strides[axes + 2];
  }
  return slots;
}

bool Plan::same_as(const Plan& other) const {
  static_assert(sizeof(natten_problem) == 200, "a struct without padding may be compared by its bytes");
  const auto same_name = [](const Tensor& a, const Tensor& b) { return a.name == b.name; };
  return this == &other ||
         (function == other.function && std::memcmp(&problem, &other.problem, sizeof problem) == 0 &&
          std::equal(inputs.begin(), inputs.end(), other.inputs.begin(), other.inputs.end(), same_name));
}

}  // namespace natten_mlx
