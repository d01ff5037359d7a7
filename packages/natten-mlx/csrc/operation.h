// A plan as a node of MLX's graph: one primitive for every op, its gradient, every rank and dtype.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <mlx/primitives.h>
#include <mlx/stream.h>

#include "plan.h"

namespace natten_mlx {

class Operation : public mx::Primitive {
 public:
  Operation(mx::Stream stream, std::shared_ptr<const Plan> plan) : mx::Primitive(stream), plan_(std::move(plan)) {}

  // The CPU kernels, on arrays of any strides; runs later, on the stream's own thread.
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  // The plan's launches. Without Metal: std::runtime_error.
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  // Derivatives and mapping are left to Python, which serves the other backends too.
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>& outputs) override;
  std::vector<mx::array> jvp(const std::vector<mx::array>& primals, const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override;

  bool is_equivalent(const mx::Primitive& other) const override;
  // A plan fits one shape: std::invalid_argument, so that mx.compile(shapeless=True) never computes a wrong size.
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override { return plan_->name.c_str(); }

 private:
  std::shared_ptr<const Plan> plan_;
};

// The plan's outputs as lazy arrays. inputs: as many as the plan names, in its order.
std::vector<mx::array> apply(std::shared_ptr<const Plan> plan, const std::vector<mx::array>& inputs, mx::Stream stream);

}  // namespace natten_mlx
