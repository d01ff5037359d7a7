// Scalar float functions behind <metal_math>: libm on the CPU, approximate instructions on an NVIDIA GPU
#pragma once

namespace metal_emulator {

#if defined(METAL_EMULATOR_PTX)
METAL_FUNC float exp2f(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
METAL_FUNC float log2f(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
METAL_FUNC float expf(float x) { return exp2f(x * M_LOG2E_F); }
METAL_FUNC float logf(float x) { return log2f(x) * M_LN2_F; }
#else
METAL_FUNC float exp2f(float x) { return __builtin_exp2f(x); }
METAL_FUNC float log2f(float x) { return __builtin_log2f(x); }
METAL_FUNC float expf(float x) { return __builtin_expf(x); }
METAL_FUNC float logf(float x) { return __builtin_logf(x); }
#endif
METAL_FUNC float exp10f(float x) { return __builtin_powf(10.0f, x); }
METAL_FUNC float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
METAL_FUNC float sinpif(float x) { return __builtin_sinf(x * M_PI_F); }
METAL_FUNC float cospif(float x) { return __builtin_cosf(x * M_PI_F); }
METAL_FUNC float tanpif(float x) { return __builtin_tanf(x * M_PI_F); }
METAL_FUNC float fractf(float x) { return x - __builtin_floorf(x); }
METAL_FUNC float dividef(float x, float y) { return x / y; }

}  // namespace metal_emulator

// F(name in Metal, scalar float function)
#define METAL_EMULATOR_UNARY_MATH(F) \
  F(exp, metal_emulator::expf)       \
  F(exp2, metal_emulator::exp2f)     \
  F(exp10, metal_emulator::exp10f)   \
  F(log, metal_emulator::logf)       \
  F(log2, metal_emulator::log2f)     \
  F(log10, __builtin_log10f)         \
  F(sqrt, __builtin_sqrtf)           \
  F(rsqrt, metal_emulator::rsqrtf)   \
  F(sin, __builtin_sinf)             \
  F(cos, __builtin_cosf)             \
  F(tan, __builtin_tanf)             \
  F(asin, __builtin_asinf)           \
  F(acos, __builtin_acosf)           \
  F(atan, __builtin_atanf)           \
  F(sinh, __builtin_sinhf)           \
  F(cosh, __builtin_coshf)           \
  F(tanh, __builtin_tanhf)           \
  F(asinh, __builtin_asinhf)         \
  F(acosh, __builtin_acoshf)         \
  F(atanh, __builtin_atanhf)         \
  F(sinpi, metal_emulator::sinpif)   \
  F(cospi, metal_emulator::cospif)   \
  F(tanpi, metal_emulator::tanpif)   \
  F(floor, __builtin_floorf)         \
  F(ceil, __builtin_ceilf)           \
  F(round, __builtin_roundf)         \
  F(rint, __builtin_rintf)           \
  F(trunc, __builtin_truncf)         \
  F(fabs, __builtin_fabsf)           \
  F(fract, metal_emulator::fractf)

#define METAL_EMULATOR_BINARY_MATH(F) \
  F(pow, __builtin_powf)              \
  F(powr, __builtin_powf)             \
  F(fmod, __builtin_fmodf)            \
  F(atan2, __builtin_atan2f)          \
  F(fmax, __builtin_fmaxf)            \
  F(fmin, __builtin_fminf)            \
  F(fdim, __builtin_fdimf)            \
  F(copysign, __builtin_copysignf)    \
  F(nextafter, __builtin_nextafterf)  \
  F(divide, metal_emulator::dividef)
