// What one primitive computes, as the Python planner decided it: frozen data.
//
// Plans and their primitives are destroyed wherever MLX drops the last reference: on a stream's thread, while the main
// thread waits for it and holds the interpreter lock, or after the interpreter has ended. So they own no Python
// objects, and this header does not use Python.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <mlx/array.h>
#include <mlx/stream.h>

#include "cpu/natten_cpu.h"

namespace natten_mlx {

namespace mx = mlx::core;

// A tensor that a plan reads or makes.
struct Tensor {
  std::string name;
  mx::Shape shape;
  mx::Dtype dtype;
};

// One instantiation of a Metal kernel: the name of its entry point, and the library's text.
struct Kernel {
  std::string name;
  std::shared_ptr<const std::string> source;
};

// A tensor whose strides the kernel reads from the parameter array.
struct Strided {
  int tensor;   // which of the plan's tensors: inputs, then outputs, then scratch
  int first;    // entry of the array where its stride block begins: batch, head, axes
  int channel;  // entry of its channels' stride
};

// A buffer of an entry point: which of the plan's tensors it binds.
struct Buffer {
  static constexpr int PARAMETERS = -1;  // none of them: the parameter array

  int tensor;
  bool written;
};

// One launch of a Metal kernel. params holds everything but the strides of the tensors in `strided`.
struct Launch {
  Kernel kernel;
  std::array<int64_t, 3> grid;  // threadgroups
  int64_t threads;              // of one threadgroup
  std::vector<int64_t> params;
  std::vector<Buffer> buffers;  // in the entry point's order
  std::vector<Strided> strided;

  // The parameter array for these tensors: the plan's inputs, outputs and scratch, in this order.
  std::vector<int64_t> parameters(const std::vector<mx::array>& tensors) const;
};

// A function of the C interface.
using Function = int (*)(const natten_problem*, const natten_tensors*);

struct Plan : std::enable_shared_from_this<Plan> {
  // Whether another plan computes the same from the same inputs.
  bool same_as(const Plan& other) const;

  std::string name;  // "na2d forward"
  Function function;
  natten_problem problem;
  std::vector<Tensor> inputs, outputs, scratch;
  std::vector<Launch> launches;  // on a GPU
  std::string call;              // by which Python finds the call: callbacks.h
};

// The function of that name; std::invalid_argument if there is none.
Function function_of(const std::string& name);

}  // namespace natten_mlx
