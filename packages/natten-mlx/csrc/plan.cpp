#include "plan.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace natten_mlx {
namespace {

// An error that Python raised. It is a type of this extension's own, because MLX's copy of nanobind need not know
// ours of python_error; the translator below turns it back.
struct HostError : std::exception {
  explicit HostError(nb::python_error&& raised) : error(std::make_shared<nb::python_error>(std::move(raised))) {}
  const char* what() const noexcept override { return error->what(); }
  std::shared_ptr<nb::python_error> error;
};

template <typename... Arguments>
std::vector<mx::array> call(nb::handle object, const char* method, const Arguments&... arguments) {
  nb::gil_scoped_acquire acquired;
  try {
    return nb::cast<std::vector<mx::array>>(object.attr(method)(arguments...));
  } catch (nb::python_error& raised) {
    throw HostError(std::move(raised));
  }
}

template <typename T>
void read_axes(nb::handle problem, const char* name, T (&axes)[3], T padding) {
  auto values = nb::cast<std::vector<T>>(problem.attr(name));
  for (size_t axis = 0; axis < 3; ++axis) axes[axis] = axis < values.size() ? values[axis] : padding;
}

int32_t dtype_of(const std::string& name) {
  if (name == "float16") return NATTEN_FLOAT16;
  if (name == "bfloat16") return NATTEN_BFLOAT16;
  if (name == "float32") return NATTEN_FLOAT32;
  if (name == "float64") return NATTEN_FLOAT64;
  throw std::invalid_argument("no such dtype: " + name);
}

// The planner's Problem, field by field.
natten_problem read_problem(nb::handle from) {
  auto number = [&](const char* name) { return nb::cast<int64_t>(from.attr(name)); };
  natten_problem p{};
  p.dtype = dtype_of(nb::cast<std::string>(from.attr("dtype")));
  p.rank = static_cast<int32_t>(number("rank"));
  p.batch = number("batch");
  p.heads = number("heads");
  p.kv_heads = number("kv_heads");
  p.head_dim = number("head_dim");
  p.head_dim_v = number("head_dim_v");
  p.additional = number("additional");
  read_axes<int64_t>(from, "query_shape", p.query_shape, 1);
  read_axes<int64_t>(from, "key_shape", p.key_shape, 1);
  read_axes<int64_t>(from, "kernel_size", p.kernel_size, 1);
  read_axes<int64_t>(from, "stride", p.stride, 1);
  read_axes<int64_t>(from, "dilation", p.dilation, 1);
  read_axes<int32_t>(from, "is_causal", p.is_causal, 0);
  p.scale = nb::cast<double>(from.attr("scale"));
  return p;
}

Function function_of(const std::string& name) {
  if (name == "forward") return Function::forward;
  if (name == "backward") return Function::backward;
  if (name == "qk") return Function::qk;
  if (name == "qk_backward") return Function::qk_backward;
  if (name == "av") return Function::av;
  if (name == "av_backward") return Function::av_backward;
  throw std::invalid_argument("no such function: " + name);
}

}  // namespace

Host::~Host() {
  if (nb::detail::cleanup_guard alive{}) {
    object_.reset();
  } else {
    object_.release();
  }
}

std::vector<mx::array> Host::vjp(const mx::Stream& stream, const std::vector<mx::array>& primals,
                                 const std::vector<mx::array>& cotangents,
                                 const std::vector<mx::array>& outputs) const {
  return call(object_, "primitive_vjp", stream, primals, cotangents, outputs);
}

std::vector<mx::array> Host::vmap(const mx::Stream& stream, const std::vector<mx::array>& inputs,
                                  const std::vector<int>& axes) const {
  return call(object_, "primitive_vmap", stream, inputs, axes);
}

std::vector<mx::array> Host::jvp(const mx::Stream& stream) const { return call(object_, "primitive_jvp", stream); }

void register_host_errors() {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const HostError& crossed) {
      crossed.error->restore();
    }
  });
}

std::vector<int64_t> Launch::parameters(const std::vector<mx::array>& tensors) const {
  std::vector<int64_t> slots = params;
  for (const Strided& from : strided) {
    const mx::Strides& strides = tensors.at(from.tensor).strides();
    const int axes = static_cast<int>(strides.size()) - 3;  // of [batch, *axes, head, channel]
    slots.at(from.slot) = strides[0];
    slots.at(from.slot + 1) = strides[axes + 1];
    for (int axis = 0; axis < axes; ++axis) slots.at(from.slot + 2 + axis) = strides[axis + 1];
    slots.at(from.channel) = strides[axes + 2];
  }
  return slots;
}

Plan::Plan(nb::handle problem, const std::string& function, std::vector<Tensor> inputs,
           std::vector<Tensor> outputs, std::vector<Tensor> scratch, std::vector<Launch> launches, nb::object host)
    : name(nb::cast<std::string>(problem.attr("name")) + " " + function),
      function(function_of(function)),
      problem(read_problem(problem)),
      inputs(std::move(inputs)),
      outputs(std::move(outputs)),
      scratch(std::move(scratch)),
      launches(std::move(launches)),
      host(std::move(host)) {}

bool Plan::same_as(const Plan& other) const {
  static_assert(sizeof(natten_problem) == 200, "a struct without padding may be compared by its bytes");
  const auto same_name = [](const Tensor& a, const Tensor& b) { return a.name == b.name; };
  return this == &other ||
         (function == other.function && std::memcmp(&problem, &other.problem, sizeof problem) == 0 &&
          std::equal(inputs.begin(), inputs.end(), other.inputs.begin(), other.inputs.end(), same_name));
}

}  // namespace natten_mlx
