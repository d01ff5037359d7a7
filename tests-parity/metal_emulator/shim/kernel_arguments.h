// How a kernel function gets its parameters. The host tells each parameter's source as Binding<KIND, INDEX>:
// a buffer, [[threadgroup(n)]] memory, or a position value by the numbers of signature.py.
#pragma once

namespace metal_emulator {

enum Source { BUFFER = 0, THREADGROUP_MEMORY = 1, POSITION = 2 };

template <int SOURCE, int INDEX>
struct Binding {
  static constexpr int source = SOURCE;
  static constexpr int index = INDEX;
};

#if defined(METAL_EMULATOR_PTX)
struct Arguments {  // passed by value
  void* buffers[31];
  unsigned grid[3];
};

METAL_FUNC unsigned position(const Arguments&, int number, int axis) {
  const unsigned thread_at[3] = {__nvvm_read_ptx_sreg_tid_x(), __nvvm_read_ptx_sreg_tid_y(),
                                 __nvvm_read_ptx_sreg_tid_z()};
  const unsigned threads[3] = {__nvvm_read_ptx_sreg_ntid_x(), __nvvm_read_ptx_sreg_ntid_y(),
                               __nvvm_read_ptx_sreg_ntid_z()};
  const unsigned group_at[3] = {__nvvm_read_ptx_sreg_ctaid_x(), __nvvm_read_ptx_sreg_ctaid_y(),
                                __nvvm_read_ptx_sreg_ctaid_z()};
  const unsigned groups[3] = {__nvvm_read_ptx_sreg_nctaid_x(), __nvvm_read_ptx_sreg_nctaid_y(),
                              __nvvm_read_ptx_sreg_nctaid_z()};
  const unsigned index = (thread_at[2] * threads[1] + thread_at[1]) * threads[0] + thread_at[0];
  const unsigned total = threads[0] * threads[1] * threads[2];
  switch (number) {
    case 0: return group_at[axis] * threads[axis] + thread_at[axis];
    case 1: return thread_at[axis];
    case 2: return group_at[axis];
    case 3: return threads[axis];
    case 4: return groups[axis];
    case 5: return groups[axis] * threads[axis];
    case 6: return index;
    case 7: return index % 32;
    case 8: return index / 32;
    case 9: return 32;
    case 10: return (total + 31) / 32;
    default: return threads[axis];
  }
}

template <int SOURCE, int INDEX>
METAL_FUNC void* address(const Arguments& a) {
  static_assert(SOURCE == BUFFER, "[[threadgroup(n)]] memory is not available on PTX");
  return a.buffers[INDEX];
}
#else
using Arguments = metal_emulator_arguments;

METAL_EMULATOR_UNCHECKED inline unsigned position(const Arguments& a, int number, int axis) {
  return a.position[number][axis];
}

template <int SOURCE, int INDEX>
METAL_EMULATOR_UNCHECKED inline void* address(const Arguments& a) {
  return SOURCE == THREADGROUP_MEMORY ? a.threadgroup_memory[INDEX] : a.buffers[INDEX];
}

// A threadgroup variable of a kernel; `key` is a byte of its own for every variable of every instantiation
template <class T>
METAL_FUNC T& threadgroup_variable(const char& key, unsigned alignment, const char* name) {
  return *(T*)metal_emulator_threadgroup_variable(&key, sizeof(T), alignment, name);
}
#endif

template <class P, class B>
METAL_EMULATOR_UNCHECKED inline P argument(const Arguments& a) {
  if constexpr (__is_pointer(P)) {
    return (P)address<B::source, B::index>(a);
  } else if constexpr (__is_lvalue_reference(P)) {
    return *(metal::remove_reference_t<P>*)address<B::source, B::index>(a);
  } else if constexpr (width<P> == 0) {
    return (P)position(a, B::index, 0);
  } else {
    using T = element<P>;
    P p;
    for (int axis = 0; axis < width<P>; axis++) p.data[axis] = (T)position(a, B::index, axis);
    return p;
  }
}

template <class... B, class... P>
METAL_EMULATOR_UNCHECKED inline void call(void (*kernel)(P...), const Arguments& a) {
  static_assert(sizeof...(B) == sizeof...(P), "one binding for each parameter");
  kernel(argument<P, B>(a)...);
}

}  // namespace metal_emulator
