#include "callbacks.h"

#include <exception>
#include <memory>
#include <utility>

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace natten_mlx::callbacks {
namespace {

// An error that Python raised. It has a type of its own, because MLX's copy of nanobind may not recognise this
// extension's python_error; the translator below turns it back.
struct HostError : std::exception {
  explicit HostError(nb::python_error&& raised) : error(std::make_shared<nb::python_error>(std::move(raised))) {}
  const char* what() const noexcept override { return error->what(); }
  std::shared_ptr<nb::python_error> error;
};

template <typename... Arguments>
Arrays ask(const char* function, const std::string& call, const Arguments&... arguments) {
  nb::gil_scoped_acquire acquired;
  try {
    nb::object asked = nb::module_::import_("natten_mlx._autodiff").attr(function);
    return nb::cast<Arrays>(asked(nb::bytes(call.data(), call.size()), arguments...));
  } catch (nb::python_error& raised) {
    throw HostError(std::move(raised));
  }
}

}  // namespace

Arrays vjp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& cotangents,
           const Arrays& outputs) {
  return ask("primitive_vjp", call, stream, primals, cotangents, outputs);
}

Arrays vmap(const std::string& call, const mx::Stream& stream, const Arrays& inputs, const std::vector<int>& axes) {
  return ask("primitive_vmap", call, stream, inputs, axes);
}

Arrays jvp(const std::string& call, const mx::Stream& stream, const Arrays& primals, const Arrays& tangents,
           const std::vector<int>& argnums) {
  return ask("primitive_jvp", call, stream, primals, tangents, argnums);
}

void register_errors() {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const HostError& crossed) {
      crossed.error->restore();
    }
  });
}

}  // namespace natten_mlx::callbacks
