// <metal_atomic>: relaxed atomics of 32 bits; float knows add, sub, exchange, load and store only, as in Metal 3
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

template <class T>
struct atomic {
  static_assert(sizeof(T) == 4 && is_arithmetic_v<T>, "atomics are int, uint or float");
  T value;
};

#define METAL_EMULATOR_ATOMIC(NAME, INTEGERS_ONLY, NEW)                                                            \
  template <class P, class U>                                                                                      \
  METAL_FUNC auto atomic_##NAME##_explicit(P* p, U operand, memory_order) {                                        \
    using T = metal_emulator::bare<decltype(p->value)>;                                                            \
    static_assert(!(INTEGERS_ONLY) || __is_integral(T), "atomic_" #NAME ": integers only");                        \
    T b = (T)operand;                                                                                              \
    return metal_emulator::atomic_change(&p->value,                                                                \
                                         [b]([[maybe_unused]] T a) METAL_EMULATOR_UNCHECKED { return (T)(NEW); }); \
  }
METAL_EMULATOR_ATOMIC(fetch_add, false, a + b)
METAL_EMULATOR_ATOMIC(fetch_sub, false, a - b)
METAL_EMULATOR_ATOMIC(exchange, false, b)
METAL_EMULATOR_ATOMIC(fetch_max, true, a > b ? a : b)
METAL_EMULATOR_ATOMIC(fetch_min, true, a < b ? a : b)
METAL_EMULATOR_ATOMIC(fetch_or, true, a | b)
METAL_EMULATOR_ATOMIC(fetch_and, true, a& b)
METAL_EMULATOR_ATOMIC(fetch_xor, true, a ^ b)
#undef METAL_EMULATOR_ATOMIC

template <class P, class U>
METAL_FUNC void atomic_store_explicit(P* p, U operand, memory_order) {
  using T = metal_emulator::bare<decltype(p->value)>;
  T b = (T)operand;
  metal_emulator::atomic_change(&p->value, [b](T) METAL_EMULATOR_UNCHECKED { return b; }, false);
}

template <class P>
METAL_FUNC auto atomic_load_explicit(P* p, memory_order) {
  return metal_emulator::atomic_read(&p->value);
}

template <class P, class E, class U>
METAL_FUNC bool atomic_compare_exchange_weak_explicit(P* p, E* expected, U desired, memory_order, memory_order) {
  using T = metal_emulator::bare<decltype(p->value)>;
  T wanted = *expected;
  T b = (T)desired;
  T old = metal_emulator::atomic_change(&p->value,
                                        [wanted, b](T a) METAL_EMULATOR_UNCHECKED { return a == wanted ? b : a; });
  *expected = old;
  return old == wanted;
}

METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

#if defined(METAL_EMULATOR_STRICT)
#define atomic_int atomic<int>  // reserved words of OpenCL
#define atomic_uint atomic<uint>
#define atomic_float atomic<float>
#else
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
#endif

}  // namespace metal
