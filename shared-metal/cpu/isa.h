// The kernels of one instruction set, as kernels.cpp compiles them: one table of functions each.
#pragma once

#include "natten_cpu.h"

namespace natten {

#define NATTEN_FUNCTION(name) int (*name)(const natten_problem*, const natten_tensors*);
struct Kernels {
  NATTEN_FUNCTIONS(NATTEN_FUNCTION)
};
#undef NATTEN_FUNCTION

#if defined(__x86_64__) || defined(_M_X64)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace sse {
extern const Kernels kernels;
}
#else
namespace neon {
extern const Kernels kernels;
}
#endif

}  // namespace natten
