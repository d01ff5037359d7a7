// The GPU side where MLX has no Metal.
#include <stdexcept>

#include "operation.h"

namespace natten_mlx {

void Operation::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::runtime_error(plan_->name + ": this C++ extension was built without Metal; use a CPU stream");
}

}  // namespace natten_mlx
