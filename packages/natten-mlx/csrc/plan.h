// What one primitive computes, as the Python planner decided it: frozen data, and whom to ask for its derivatives.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nanobind/nanobind.h>

#include <mlx/array.h>
#include <mlx/stream.h>

#include "cpu/natten_cpu.h"

namespace natten_mlx {

namespace mx = mlx::core;
namespace nb = nanobind;

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
  int slot;     // the first of its stride block: batch, head, axes
  int channel;  // the slot of its channels' stride
};

// A buffer of an entry point: which of the plan's tensors it binds.
struct Buffer {
  static constexpr int PARAMETERS = -1;  // none of them: the parameter array

  int tensor;
  bool written;
};

// One launch of a Metal kernel. params holds every slot but the strides of tensors that bring their own.
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

// Functions of the C interface.
enum class Function { forward, backward, qk, qk_backward, av, av_backward };

// A Python object that a plan keeps. Plans may end on any thread, and after the interpreter has.
class Host {
 public:
  explicit Host(nb::object object) : object_(std::move(object)) {}
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // What its methods return. An error of Python's crosses MLX and comes out as it was.
  std::vector<mx::array> vjp(const mx::Stream& stream, const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents, const std::vector<mx::array>& outputs) const;
  std::vector<mx::array> vmap(const mx::Stream& stream, const std::vector<mx::array>& inputs,
                              const std::vector<int>& axes) const;
  std::vector<mx::array> jvp(const mx::Stream& stream) const;

 private:
  nb::object object_;
};

struct Plan : std::enable_shared_from_this<Plan> {
  Plan(nb::handle problem, const std::string& function, std::vector<Tensor> inputs, std::vector<Tensor> outputs,
       std::vector<Tensor> scratch, std::vector<Launch> launches, nb::object host);

  // Whether another plan computes the same from the same inputs.
  bool same_as(const Plan& other) const;

  std::string name;  // "na2d forward"
  Function function;
  natten_problem problem;
  std::vector<Tensor> inputs, outputs, scratch;
  std::vector<Launch> launches;  // on a GPU
  Host host;
};

// Registers how Python errors that crossed MLX are raised again.
void register_host_errors();

}  // namespace natten_mlx
