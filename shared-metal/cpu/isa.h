// The kernels of one instruction set, as kernels.cpp compiles them: one table of functions each.
#pragma once

#include "natten_cpu.h"

namespace natten {

struct Kernels {
  decltype(&natten_forward) forward;
  decltype(&natten_backward) backward;
  decltype(&natten_qk) qk;
  decltype(&natten_qk_backward) qk_backward;
  decltype(&natten_av) av;
  decltype(&natten_av_backward) av_backward;
};

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
