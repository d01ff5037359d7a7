// <metal_type_traits> and <metal_limits>
#pragma once

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool b, class T = void>
using enable_if_t = typename enable_if<b, T>::type;

template <bool, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool b, class T, class F>
using conditional_t = typename conditional<b, T, F>::type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <class T>
using remove_cv_t = __remove_cv(T);
template <class T>
using remove_const_t = __remove_const(T);
template <class T>
using remove_reference_t = __remove_reference_t(T);
template <class T>
using remove_cvref_t = __remove_cvref(T);
template <class T>
using remove_pointer_t = __remove_pointer(T);
template <class T>
using make_unsigned_t = __make_unsigned(T);
template <class T>
using make_signed_t = __make_signed(T);
template <class T>
struct remove_cv {
  using type = __remove_cv(T);
};
template <class T>
struct remove_reference {
  using type = __remove_reference_t(T);
};
template <class T>
struct remove_pointer {
  using type = __remove_pointer(T);
};
template <class T>
struct make_unsigned {
  using type = __make_unsigned(T);
};
template <class T>
struct make_signed {
  using type = __make_signed(T);
};

template <class T>
constexpr bool is_integral_v = __is_integral(T);
template <class T>
constexpr bool is_floating_point_v = __is_floating_point(T);
template <class T>
constexpr bool is_arithmetic_v = __is_arithmetic(T);
template <class T>
constexpr bool is_signed_v = __is_signed(T);
template <class T>
constexpr bool is_unsigned_v = __is_unsigned(T);
template <class T>
constexpr bool is_pointer_v = __is_pointer(T);
template <class A, class B>
constexpr bool is_convertible_v = __is_convertible(A, B);
template <class T>
struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T>
struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <class T>
struct is_signed : bool_constant<is_signed_v<T>> {};
template <class T>
struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class T>
struct is_pointer : bool_constant<is_pointer_v<T>> {};
template <class A, class B>
struct is_convertible : bool_constant<is_convertible_v<A, B>> {};

template <class T>
T&& declval();

template <class T>
struct numeric_limits {
  static constexpr bool is_signed = __is_signed(T);
  static constexpr bool is_integer = true;
  static constexpr int digits = sizeof(T) * 8 - (is_signed ? 1 : 0);
  static constexpr T max() {
    using U = __make_unsigned(T);
    return is_signed ? (T)((U) ~(U)0 >> 1) : (T) ~(T)0;
  }
  static constexpr T min() { return is_signed ? (T)(-max() - 1) : (T)0; }
  static constexpr T lowest() { return min(); }
  static constexpr T infinity() { return T(); }
};

template <>
struct numeric_limits<bool> {
  static constexpr bool max() { return true; }
  static constexpr bool min() { return false; }
};

#define METAL_EMULATOR_FLOAT_LIMITS(T, MAX, MIN, EPSILON, DIGITS)    \
  template <>                                                        \
  struct numeric_limits<T> {                                         \
    static constexpr bool is_signed = true;                          \
    static constexpr bool is_integer = false;                        \
    static constexpr int digits = DIGITS;                            \
    static constexpr T max() { return (T)MAX; }                      \
    static constexpr T lowest() { return (T) - MAX; }                \
    static constexpr T min() { return (T)MIN; }                      \
    static constexpr T epsilon() { return (T)EPSILON; }              \
    static constexpr T infinity() { return (T)__builtin_inff(); }    \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
  };
METAL_EMULATOR_FLOAT_LIMITS(float, 3.402823466e+38f, 1.175494351e-38f, 1.1920928955078125e-07f, 24)
METAL_EMULATOR_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 9.765625e-04f, 11)
METAL_EMULATOR_FLOAT_LIMITS(bfloat, 3.3895313892515355e38f, 1.175494351e-38f, 7.8125e-03f, 8)
#undef METAL_EMULATOR_FLOAT_LIMITS

}  // namespace metal
