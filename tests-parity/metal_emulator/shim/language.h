// Words of the Metal language that C++ lacks: address spaces, scalar types, constants.
//
// One shim serves three compilers:
//   METAL_EMULATOR_STRICT   clang's C++ for OpenCL front end: real address spaces, syntax check only
//   __NVPTX__               clang's CUDA front end: PTX for an NVIDIA GPU (METAL_EMULATOR_PTX below)
//   neither                 C++17 on x86-64, executed by the runtime (METAL_EMULATOR_CPU below)
#pragma once

#if defined(METAL_EMULATOR_STRICT)
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#else
#define device
#define constant
#define threadgroup
#define thread
#if defined(__NVPTX__)
#define METAL_EMULATOR_PTX 1
#else
#define METAL_EMULATOR_CPU 1
#endif
#endif
#define threadgroup_imageblock
#define ray_data

#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_INTERNAL
#define METAL_CONST const
#define __METAL_MAYBE_FAST_MATH__ false
#define __METAL_FAST_MATH__ true
#define __METAL_PRECISE_MATH__ false

// Code that the memory checks leave alone
#if defined(METAL_EMULATOR_CPU)
#define METAL_EMULATOR_UNCHECKED __attribute__((no_sanitize("thread", "address", "undefined")))
#else
#define METAL_EMULATOR_UNCHECKED
#endif

// Where a barrier or simdgroup operation stands in the source. As a default argument it is the position of the call,
// so two operations stay apart even if the optimiser merges their code.
typedef unsigned metal_emulator_site;
#define METAL_EMULATOR_SITE metal_emulator_site site = __builtin_LINE() * 1024u + __builtin_COLUMN() % 1024u

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef ulong uintptr_t;
typedef long intptr_t;

#if defined(METAL_EMULATOR_STRICT)
#define half _Float16  // `half` is a keyword of OpenCL with limits of its own
#else
typedef _Float16 half;
#endif
typedef __bf16 bfloat;

#define INFINITY __builtin_inff()
#define HUGE_VALF __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920928955078125e-07f
#define HALF_MAX ((half)65504.0f)
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
