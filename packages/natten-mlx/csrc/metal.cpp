// The GPU side: the plan's launches on MLX's Metal stream. Kernels are compiled from their text at first use.
#include <stdexcept>
#include <string>

#include <mlx/allocator.h>
#include <mlx/backend/metal/device.h>

#include "operation.h"

namespace natten_mlx {
namespace {

mx::array allocated(const Tensor& tensor) {
  mx::array made(tensor.shape, tensor.dtype, nullptr, {});
  made.set_data(mx::allocator::malloc(made.nbytes()));
  return made;
}

void encode(const Launch& launch, std::vector<mx::array>& tensors, mx::Stream stream) {
  auto& device = mx::metal::device(stream.device);
  auto& encoder = mx::metal::get_command_encoder(stream);
  const Kernel& kernel = launch.kernel;
  auto* library = device.get_library("natten_" NATTEN_KERNELS_DIGEST "_" + kernel.name, [&] { return *kernel.source; });
  auto* pipeline = device.get_kernel(kernel.name, library);
  if (pipeline->maxTotalThreadsPerThreadgroup() < static_cast<size_t>(launch.threads))
    throw std::runtime_error(kernel.name + ": needs more registers than " + std::to_string(launch.threads) +
                             " threads of a threadgroup have on this GPU");
  const std::vector<int64_t> params = launch.parameters(tensors);
  mx::array parameters(params.begin(), {static_cast<int>(params.size())}, mx::int64);
  encoder.add_temporary(parameters);
  encoder.set_compute_pipeline_state(pipeline);
  for (size_t buffer = 0; buffer < launch.buffers.size(); ++buffer) {
    const auto [tensor, written] = launch.buffers[buffer];
    const int index = static_cast<int>(buffer);
    if (tensor == Buffer::PARAMETERS) {
      encoder.set_input_array(parameters, index);
    } else if (written) {
      encoder.set_output_array(tensors[tensor], index);
    } else {
      encoder.set_input_array(tensors[tensor], index);
    }
  }
  const auto size = [](int64_t count) { return static_cast<size_t>(count); };
  encoder.dispatch_threadgroups(MTL::Size(size(launch.grid[0]), size(launch.grid[1]), size(launch.grid[2])),
                                MTL::Size(size(launch.threads), 1, 1));
}

}  // namespace

void Operation::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& encoder = mx::metal::get_command_encoder(stream());
  for (auto& output : outputs) output.set_data(mx::allocator::malloc(output.nbytes()));
  std::vector<mx::array> tensors = inputs;
  tensors.insert(tensors.end(), outputs.begin(), outputs.end());
  for (const Tensor& tensor : plan_->scratch) {
    tensors.push_back(allocated(tensor));
    encoder.add_temporary(tensors.back());
  }
  for (const Launch& launch : plan_->launches) encode(launch, tensors, stream());
}

}  // namespace natten_mlx
