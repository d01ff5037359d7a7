#include "operation.h"

#include <algorithm>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>

#include "callbacks.h"

namespace natten_mlx {
namespace {

// A tensor of the C interface, by name.
struct Member {
  const char* name;
  natten_tensor natten_tensors::*tensor;
  natten_layout layout;
};

constexpr Member kMembers[] = {
#define MEMBER(name, layout) \
  {#name, &natten_tensors::name, NATTEN_##layout}, {#name "_grad", &natten_tensors::name##_grad, NATTEN_##layout},
    NATTEN_TENSORS(MEMBER)
#undef MEMBER
};

// An array as the C interface takes it.
natten_tensor described(const mx::array& array, natten_layout layout) {
  natten_tensor tensor{const_cast<void*>(array.data<void>()), {}};
  if (layout == NATTEN_FLAT) return tensor;
  const mx::Strides& strides = array.strides();
  const int channels = layout == NATTEN_CHANNELS ? 1 : 0, axes = static_cast<int>(strides.size()) - 2 - channels;
  tensor.stride[0] = strides[0];
  for (int axis = 0; axis < axes; ++axis) tensor.stride[1 + axis] = strides[1 + axis];
  tensor.stride[4] = strides[1 + axes];
  if (channels) tensor.stride[5] = strides[2 + axes];
  return tensor;
}

// One call of the CPU kernels. MLX keeps the buffers until it has run.
class Call {
 public:
  Call(std::shared_ptr<const Plan> plan, const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs)
      : plan_(std::move(plan)) {
    for (size_t i = 0; i < inputs.size(); ++i) add(plan_->inputs[i].name, inputs[i]);
    for (size_t i = 0; i < outputs.size(); ++i) add(plan_->outputs[i].name, outputs[i]);
  }

  void operator()() {
    const int status = plan_->function(&plan_->problem, &tensors_);
    if (status == NATTEN_NO_MEMORY) throw std::bad_alloc();
    if (status != NATTEN_OK) throw std::runtime_error(plan_->name + ": the CPU kernel refused the problem");
  }

 private:
  void add(const std::string& name, const mx::array& array) {
    const auto named = [&](const Member& member) { return name == member.name; };
    const auto member = std::find_if(std::begin(kMembers), std::end(kMembers), named);
    if (member == std::end(kMembers)) throw std::invalid_argument(plan_->name + ": no such tensor: " + name);
    tensors_.*(member->tensor) = described(array, member->layout);
  }

  std::shared_ptr<const Plan> plan_;
  natten_tensors tensors_{};
};

}  // namespace

void Operation::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (auto& output : outputs) output.set_data(mx::allocator::malloc(output.nbytes()));
  for (const auto& input : inputs) encoder.set_input_array(input);
  for (auto& output : outputs) encoder.set_output_array(output);
  encoder.dispatch(Call(plan_, inputs, outputs));
}

std::vector<mx::array> Operation::vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                                      const std::vector<int>& argnums, const std::vector<mx::array>& outputs) {
  const auto gradients = callbacks::vjp(plan_->call, stream(), primals, cotangents, outputs);
  std::vector<mx::array> wanted;
  for (int argument : argnums) wanted.push_back(gradients.at(argument));
  return wanted;
}

std::vector<mx::array> Operation::jvp(const std::vector<mx::array>& primals, const std::vector<mx::array>& tangents,
                                      const std::vector<int>& argnums) {
  return callbacks::jvp(plan_->call, stream(), primals, tangents, argnums);
}

std::pair<std::vector<mx::array>, std::vector<int>> Operation::vmap(const std::vector<mx::array>& inputs,
                                                                    const std::vector<int>& axes) {
  auto outputs = callbacks::vmap(plan_->call, stream(), inputs, axes);
  std::vector<int> first(outputs.size(), 0);
  return {std::move(outputs), std::move(first)};
}

bool Operation::is_equivalent(const mx::Primitive& other) const {
  return plan_->same_as(*static_cast<const Operation&>(other).plan_);
}

std::vector<mx::Shape> Operation::output_shapes(const std::vector<mx::array>&) {
  throw std::invalid_argument(plan_->name + ": a plan fits one shape, so mx.compile(shapeless=True) cannot infer others");
}

std::vector<mx::array> apply(std::shared_ptr<const Plan> plan, const std::vector<mx::array>& inputs,
                             mx::Stream stream) {
  // The kernels read what the plan says; arrays of other sizes would be read beyond their ends.
  const auto fits = [](const mx::array& array, const Tensor& input) {
    return array.shape() == input.shape && array.dtype() == input.dtype;
  };
  if (!std::equal(inputs.begin(), inputs.end(), plan->inputs.begin(), plan->inputs.end(), fits))
    throw std::invalid_argument(plan->name + ": the arrays do not fit the plan");
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const Tensor& output : plan->outputs) {
    shapes.push_back(output.shape);
    dtypes.push_back(output.dtype);
  }
  return mx::array::make_arrays(std::move(shapes), dtypes, std::make_shared<Operation>(stream, std::move(plan)),
                                inputs);
}

}  // namespace natten_mlx
