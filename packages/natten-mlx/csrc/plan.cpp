#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace natten_mlx {
namespace {

bool same(const natten_problem& a, const natten_problem& b) {
#define NUMBER(type, name) a.name == b.name &&
#define AXES(type, name) std::equal(a.name, a.name + 3, b.name) &&
  return NATTEN_FIELDS(NUMBER, NUMBER, AXES) true;
#undef NUMBER
#undef AXES
}

}  // namespace

Function function_of(const std::string& name) {
#define FUNCTION(known) \
  if (name == #known) return natten_##known;
  NATTEN_FUNCTIONS(FUNCTION)
#undef FUNCTION
  throw std::invalid_argument("no such function: " + name);
}

std::vector<int64_t> Launch::parameters(const std::vector<mx::array>& tensors) const {
  std::vector<int64_t> made = params;
  for (const Strided& from : strided) {
    const mx::Strides& strides = tensors.at(from.tensor).strides();
    const int axes = static_cast<int>(strides.size()) - 3;  // of [batch, *axes, head, channel]
    made.at(from.first) = strides[0];
    made.at(from.first + 1) = strides[axes + 1];
    for (int axis = 0; axis < axes; ++axis) made.at(from.first + 2 + axis) = strides[axis + 1];
    made.at(from.channel) = strides[axes + 2];
  }
  return made;
}

bool Plan::same_as(const Plan& other) const {
  const auto same_name = [](const Tensor& a, const Tensor& b) { return a.name == b.name; };
  return this == &other ||
         (function == other.function && same(problem, other.problem) &&
          std::equal(inputs.begin(), inputs.end(), other.inputs.begin(), other.inputs.end(), same_name));
}

}  // namespace natten_mlx
