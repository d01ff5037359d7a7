// Stand-in for <metal_stdlib> and its siblings. See language.h for the three compilers that read it.
#pragma once
#include "language.h"

#if defined(METAL_EMULATOR_PTX)
#pragma clang force_cuda_host_device begin
#endif

#include "type_traits.h"
#include "vector.h"
#include "vector_operators.h"
#include "math.h"
#include "common.h"
#if defined(METAL_EMULATOR_STRICT)
#include "device_strict.h"
#elif defined(METAL_EMULATOR_PTX)
#include "device_ptx.h"
#else
#include "device_cpu.h"
#endif
#include "simdgroup.h"
#include "simdgroup_matrix.h"
#if defined(METAL_EMULATOR_CPU)
#include "tensor_cpu.h"
#elif defined(METAL_EMULATOR_PTX)
#include "tensor_ptx.h"
#endif
#include "tensor_ops.h"
#include "atomics.h"
#include "mlx_names.h"
#if !defined(METAL_EMULATOR_STRICT)
#include "kernel_arguments.h"
#endif

#if defined(METAL_EMULATOR_PTX)
#pragma clang force_cuda_host_device end
#endif
