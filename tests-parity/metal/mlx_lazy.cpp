// A node of MLX's graph whose evaluation calls Python, so that mlx_host.py can be as lazy as mx.fast.metal_kernel.
//
// Like MLX's own CustomKernel, it has no derivatives and no vmap, it knows the memory and strides of its inputs only
// when it is evaluated, and errors are raised by mx.eval.

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <mlx/allocator.h>
#include <mlx/array.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

namespace mx = mlx::core;
namespace nb = nanobind;

// Address, shape and element strides of an array
using Memory = std::tuple<uintptr_t, std::vector<int64_t>, std::vector<int64_t>>;

static Memory memory_of(const mx::array& a) {
  return {reinterpret_cast<uintptr_t>(a.data<char>()), {a.shape().begin(), a.shape().end()},
          {a.strides().begin(), a.strides().end()}};
}

class CustomKernel : public mx::Primitive {
 public:
  // `run` is never released: a graph may outlive the interpreter
  CustomKernel(mx::Stream stream, nb::handle run) : mx::Primitive(stream), run_(run) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    std::vector<Memory> given;
    std::vector<Memory> made;
    for (const auto& in : inputs) given.push_back(memory_of(in));
    for (auto& out : outputs) {
      out.set_data(mx::allocator::malloc(out.nbytes()));
      made.push_back(memory_of(out));
    }
    mx::cpu::get_command_encoder(stream()).dispatch([run = run_, given = std::move(given), made = std::move(made)] {
      std::string failure;
      {
        nb::gil_scoped_acquire gil;
        try {
          run(given, made);
        } catch (nb::python_error& error) {
          failure = nb::str(error.value()).c_str();
        }
      }
      if (!failure.empty()) throw std::runtime_error(failure);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("the emulated host runs on the CPU");
  }

  const char* name() const override { return "CustomKernel"; }

 private:
  nb::handle run_;
};

static std::vector<mx::array> launch(const std::vector<mx::array>& inputs, const std::vector<std::vector<int>>& shapes,
                                     const std::vector<mx::Dtype>& dtypes, nb::callable run, mx::Stream stream) {
  std::vector<mx::Shape> made;
  for (const auto& shape : shapes) made.push_back(mx::Shape(shape.begin(), shape.end()));
  auto primitive = std::make_shared<CustomKernel>(stream, run.release());
  return mx::array::make_arrays(std::move(made), dtypes, primitive, inputs);
}

NB_MODULE(mlx_lazy, m) {
  nb::module_::import_("mlx.core");
  if (!nb::type<mx::array>().is_valid()) throw nb::import_error("MLX was built with another nanobind ABI");
  m.def("launch", &launch);
}
