// Calls into Python, which decides derivatives and mapping. They may be made without the interpreter lock.
#pragma once

#include <string>
#include <vector>

#include <mlx/array.h>
#include <mlx/stream.h>

namespace natten_mlx::callbacks {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

// What natten_mlx._autodiff computes for the call that these bytes (Plan::call) identify. A Python error passes through
// MLX and is raised again unchanged.
Arrays vjp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& cotangents,
           const Arrays& outputs);
Arrays vmap(const std::string& call, const mx::Stream& stream, const Arrays& inputs, const std::vector<int>& axes);
Arrays jvp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& tangents,
           const std::vector<int>& argnums);

// Registers how Python errors that passed through MLX are raised again.
void register_errors();

}  // namespace natten_mlx::callbacks
