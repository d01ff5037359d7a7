// The Python module `natten_mlx._ext_VERSION`: plans in, lazy arrays out.
// Its users are nanobind.py and nanobind_metal.py in natten_mlx/_launch.
#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "callbacks.h"
#include "operation.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace natten_mlx {
namespace {

int32_t dtype_of(const std::string& name) {
#define DTYPE(NAME, known) \
  if (name == #known) return NATTEN_##NAME;
  NATTEN_DTYPES(DTYPE)
#undef DTYPE
  throw std::invalid_argument("no such dtype: " + name);
}

// The planner's Problem, field by field; its settings stay 0.
natten_problem read_problem(nb::handle from) {
  natten_problem p{};
#define SETTING(type, name)
#define NUMBER(type, name) p.name = nb::cast<type>(from.attr(#name));
#define AXES(type, name)                                              \
  {                                                                   \
    const auto values = nb::cast<std::vector<type>>(from.attr(#name)); \
    std::copy_n(values.begin(), std::min<size_t>(values.size(), 3), p.name); \
  }
  NATTEN_FIELDS(SETTING, NUMBER, AXES)
#undef SETTING
#undef NUMBER
#undef AXES
  p.dtype = dtype_of(nb::cast<std::string>(from.attr("dtype")));
  return p;
}

using Given = std::vector<std::tuple<std::string, std::vector<int>, mx::Dtype>>;

std::vector<Tensor> tensors(const Given& given) {
  std::vector<Tensor> made;
  for (const auto& [name, shape, dtype] : given) made.push_back({name, mx::Shape(shape.begin(), shape.end()), dtype});
  return made;
}

Launch launch(const Kernel& kernel, std::array<int64_t, 3> grid, int64_t threads, std::vector<int64_t> params,
              const std::vector<std::pair<int, bool>>& buffers, const std::vector<std::array<int, 3>>& strided) {
  Launch made{kernel, grid, threads, std::move(params), {}, {}};
  for (const auto& [tensor, written] : buffers) made.buffers.push_back({tensor, written});
  for (const auto& [tensor, first, channel] : strided) made.strided.push_back({tensor, first, channel});
  return made;
}

std::shared_ptr<Plan> plan(nb::handle problem, const std::string& function, const Given& inputs, const Given& outputs,
                           const Given& scratch, std::vector<Launch> launches, nb::bytes call) {
  auto made = std::make_shared<Plan>();
  made->name = nb::cast<std::string>(problem.attr("name")) + " " + function;
  made->function = function_of(function);
  made->problem = read_problem(problem);
  made->inputs = tensors(inputs);
  made->outputs = tensors(outputs);
  made->scratch = tensors(scratch);
  made->launches = std::move(launches);
  made->call = std::string(call.c_str(), call.size());
  return made;
}

// The device, dtypes and shapes of a call, as bytes: equal for calls that pose the same problem.
nb::bytes metadata_key(const mx::array& query, const mx::array& key, const mx::array& value, const mx::Stream& stream) {
  std::vector<int64_t> key_parts{static_cast<int64_t>(stream.device.type)};
  for (const mx::array* array : {&query, &key, &value}) {
    key_parts.push_back(static_cast<int64_t>(array->dtype().val()));
    key_parts.push_back(static_cast<int64_t>(array->ndim()));
    key_parts.insert(key_parts.end(), array->shape().begin(), array->shape().end());
  }
  return nb::bytes(key_parts.data(), key_parts.size() * sizeof(int64_t));
}

}  // namespace
}  // namespace natten_mlx

// Each release of MLX has a module of its own name.
#define NAMED_MODULE(name, m) NB_MODULE(name, m)

NAMED_MODULE(NATTEN_MODULE, m) {
  using namespace natten_mlx;
  nb::module_::import_("mlx.core");  // registers mx.array in the domain that both share
  // With another version of nanobind's internals the domain is empty, and every call would be a TypeError.
  if (!nb::type<mx::array>().is_valid())
    throw nb::import_error("mlx.core.array is not visible: MLX was built with another nanobind ABI than v" NATTEN_NANOBIND_INTERNALS);
  callbacks::register_errors();
  m.attr("kernels_digest") = NATTEN_KERNELS_DIGEST;
  m.attr("sources_digest") = NATTEN_SOURCES_DIGEST;
  m.def("instruction_set", [] { return std::string(natten_cpu_isa()); },
        "What the CPU kernels use: 'avx512', 'avx2', 'sse' or 'neon'.");
  m.def("threads", &natten_cpu_threads, "Threads of the CPU kernels' pool.");
  m.def("complaint", []() -> std::optional<std::string> {
    const char* found = natten_cpu_complaint();
    return found ? std::optional<std::string>(found) : std::nullopt;
  }, "What is wrong with an environment variable of the CPU kernels, or None.");

  m.def("metadata_key", &metadata_key, "query"_a, "key"_a, "value"_a, "stream"_a,
        "The device, dtypes and shapes of a call, as bytes.");

  nb::class_<Kernel>(m, "Kernel", "One instantiation of a Metal kernel: the entry point's name, the library's text.")
      .def("__init__", [](Kernel* self, std::string name, std::string source) {
        new (self) Kernel{std::move(name), std::make_shared<const std::string>(std::move(source))};
      }, "name"_a, "source"_a);
  nb::class_<Launch>(m, "Launch",
                     "One launch. buffers: (the plan's tensor or -1 for the parameters, written); strided: (tensor, "
                     "first entry of its strides in params, entry of its channels' stride).")
      .def("__init__", [](Launch* self, const Kernel& kernel, std::array<int64_t, 3> grid, int64_t threads,
                          std::vector<int64_t> params, const std::vector<std::pair<int, bool>>& buffers,
                          const std::vector<std::array<int, 3>>& strided) {
        new (self) Launch(launch(kernel, grid, threads, std::move(params), buffers, strided));
      }, "kernel"_a, "grid"_a, "threads"_a, "params"_a, "buffers"_a, "strided"_a)
      .def("parameters", &Launch::parameters, "tensors"_a,
           "The parameter array for these arrays, which must have been evaluated: their strides are filled in.");
  nb::class_<Plan>(m, "Plan", "What one primitive computes.")
      .def_prop_ro("name", [](const Plan& self) { return self.name; }, "What MLX calls the primitive.");
  m.def("plan", &plan, "problem"_a, "function"_a, "inputs"_a, "outputs"_a, "scratch"_a, "launches"_a, "call"_a,
        "A plan. function: of the C interface; inputs, outputs, scratch: (name, shape, dtype); launches: on a GPU; "
        "call: the bytes by which natten_mlx._autodiff finds it, for its derivatives and mapping.");
  m.def("apply", [](std::shared_ptr<Plan> plan, const std::vector<mx::array>& inputs, const mx::Stream& stream) {
    return apply(std::move(plan), inputs, stream);
  }, "plan"_a, "inputs"_a, "stream"_a, "The plan's outputs, lazy. inputs: in its order; ValueError if their shapes or dtypes differ.");
}
