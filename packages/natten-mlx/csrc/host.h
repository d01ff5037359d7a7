// The Python side, asked for what it decides: derivatives and mapping. Safe on threads that hold no interpreter lock.
#pragma once

#include <string>
#include <vector>

#include <mlx/array.h>
#include <mlx/stream.h>

namespace natten_mlx::host {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

// What natten_mlx._autodiff says of the call that it knows by these bytes (Plan::call). An error of Python's
// crosses MLX and comes out as it was.
Arrays vjp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& cotangents,
           const Arrays& outputs);
Arrays vmap(const std::string& call, const mx::Stream& stream, const Arrays& inputs, const std::vector<int>& axes);
Arrays jvp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& tangents,
           const std::vector<int>& argnums);

// Registers how Python errors that crossed MLX are raised again.
void register_errors();

}  // namespace natten_mlx::host
