/* Neighborhood attention on the CPU: the whole interface, plain C on raw pointers.
 *
 * Layout is heads-last. Tensors are described by element strides, so any view can be read and written; the kernels
 * allocate their own scratch memory, O(threads) and, for gradients, three float32 (float64) values per query row
 * and copies of the gradients of additional keys and of rpb: up to 64 of a small one, a few of a large one.
 * Window arithmetic is kernels/window.h, the same file that the Metal kernels read.
 *
 * A row all of whose logits are -inf has out 0, lse -inf and gradients 0.
 *
 * Every function returns NATTEN_OK or one of the codes below and writes nothing outside its outputs. Calls may come
 * from any number of threads at once. Results are bit-equal for any number of threads. An input whose data is NULL is
 * absent (additional keys, rpb, key_mask, the gradient of lse); a gradient whose data is NULL is not computed.
 */
#ifndef NATTEN_CPU_H
#define NATTEN_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NATTEN_API __attribute__((visibility("default")))
#else
#define NATTEN_API
#endif

/* Changes with every change of the interface. */
#define NATTEN_CPU_ABI 6

enum natten_status { NATTEN_OK = 0, NATTEN_NO_MEMORY = 1, NATTEN_BAD_PROBLEM = 2 };

/* --- the interface as tables --------------------------------------------------------------------------------
 * What follows is made from them, and so are the tables of the C++ sources that include this file. Hosts that cannot
 * include it read them from natten_cpu_interface(). */

/* A dtype's number is its index in this list. */
#define NATTEN_DTYPES(DTYPE) \
  DTYPE(FLOAT16, float16) DTYPE(BFLOAT16, bfloat16) DTYPE(FLOAT32, float32) DTYPE(FLOAT64, float64)

/* SETTING: what a host decides; NUMBER and AXES: what the problem is. Entries of AXES at and past `rank` are ignored.
 *
 * A call computes a piece of a problem on axes of full_shape tokens: its query tensors hold the tokens from query_start
 * on, its key tensors those from key_start on. Every key that a query at hand sees must be at hand, except in full
 * attention (rank 1, stride and dilation 1, kernel_size >= full_shape, starts 0), which is cut to the keys there are.
 * Gradients of keys are the piece's share: what its own queries give them. */
#define NATTEN_FIELDS(SETTING, NUMBER, AXES)                                                                \
  SETTING(int32_t, dtype)                                                                                    \
  SETTING(int32_t, threads)     /* 0: natten_cpu_threads(); else that many, at most NATTEN_NUM_THREADS if set */ \
  NUMBER(int64_t, rank)         /* 1, 2 or 3 */                                                              \
  NUMBER(int64_t, batch)                                                                                     \
  NUMBER(int64_t, heads)        /* query heads, a multiple of kv_heads */                                    \
  NUMBER(int64_t, kv_heads)                                                                                  \
  NUMBER(int64_t, head_dim)     /* D >= 1; ignored by av */                                                  \
  NUMBER(int64_t, head_dim_v)   /* D_v >= 1; ignored by qk */                                                \
  NUMBER(int64_t, additional)   /* tokens of additional keys and values, 0: none */                          \
  NUMBER(double, scale)                                                                                      \
  AXES(int64_t, full_shape)     /* tokens per axis of the whole problem, outermost first */                  \
  AXES(int64_t, query_shape)    /* tokens at hand */                                                         \
  AXES(int64_t, query_start)    /* the first of them */                                                      \
  AXES(int64_t, key_shape)                                                                                   \
  AXES(int64_t, key_start)                                                                                   \
  AXES(int64_t, kernel_size)                                                                                 \
  AXES(int64_t, stride)                                                                                      \
  AXES(int64_t, dilation)                                                                                    \
  AXES(int64_t, is_causal)

/* The layout of a tensor. CHANNELS: [B, *shape, H, C]; ROWS: [B, *shape, H]; FLAT: contiguous, strides are ignored. */
enum natten_layout { NATTEN_CHANNELS, NATTEN_ROWS, NATTEN_FLAT };

/* Each has a gradient of the same layout, name_grad. Accumulation is float32 (float64 for NATTEN_FLOAT64). lse and rpb,
 * and their gradients, have that dtype; every other tensor has the problem's. */
#define NATTEN_TENSORS(TENSOR)                                              \
  TENSOR(query, CHANNELS)                                                   \
  TENSOR(key, CHANNELS)                                                     \
  TENSOR(value, CHANNELS)                                                   \
  TENSOR(additional_keys, CHANNELS)   /* [B, tokens, H_kv, D] */            \
  TENSOR(additional_values, CHANNELS) /* [B, tokens, H_kv, D_v] */          \
  TENSOR(rpb, FLAT)                   /* relative positional bias, [H, prod(2w-1)] */ \
  TENSOR(key_mask, FLAT)              /* [B, *shape] bytes; 0: no query sees the key. Fused attention; no gradient */ \
  TENSOR(out, CHANNELS)                                                     \
  TENSOR(lse, ROWS)                                                         \
  TENSOR(logits, CHANNELS)            /* [B, *shape, H, prod(w)], row-major over the window */ \
  TENSOR(attn, CHANNELS)              /* as logits */

/* natten_<function>(problem, tensors); what each reads and writes is said at its declaration. */
#define NATTEN_FUNCTIONS(FUNCTION) \
  FUNCTION(forward) FUNCTION(backward) FUNCTION(qk) FUNCTION(qk_backward) FUNCTION(av) FUNCTION(av_backward)

/* --- what is made from them ---------------------------------------------------------------------------------- */

#define NATTEN_ENUMERATOR(NAME, name) NATTEN_##NAME,
enum natten_dtype { NATTEN_DTYPES(NATTEN_ENUMERATOR) };
#undef NATTEN_ENUMERATOR

#define NATTEN_NUMBER(type, name) type name;
#define NATTEN_AXES(type, name) type name[3];
typedef struct natten_problem {
  NATTEN_FIELDS(NATTEN_NUMBER, NATTEN_NUMBER, NATTEN_AXES)
} natten_problem;
#undef NATTEN_NUMBER
#undef NATTEN_AXES

/* Element strides of [B, *shape, H, C]: batch, axis 0..2 (rank of them, the rest ignored), head, channel. */
typedef struct natten_tensor {
  void *data;
  int64_t stride[6];
} natten_tensor;

#define NATTEN_MEMBER(name, layout) natten_tensor name, name##_grad;
typedef struct natten_tensors {
  NATTEN_TENSORS(NATTEN_MEMBER)
} natten_tensors;
#undef NATTEN_MEMBER

/* --- functions ---------------------------------------------------------------------------------------------- */

/* Fused attention: out [B, *shape, H, D_v] and lse [B, *shape, H] from query, key, value, additional keys and values,
 * rpb and key_mask. Masked keys and their values are not read; their gradients are 0. */
NATTEN_API int natten_forward(const natten_problem *problem, const natten_tensors *tensors);

/* Gradients of those inputs, from out_grad, lse_grad, the inputs, and the out and lse that natten_forward computed. */
NATTEN_API int natten_backward(const natten_problem *problem, const natten_tensors *tensors);

/* Split ops: logits from query, key and rpb; out from attn and value. A slot at or past the window's end holds -inf in
 * logits, is never read in attn or in a gradient, and gets a gradient of zero. */
NATTEN_API int natten_qk(const natten_problem *problem, const natten_tensors *tensors);
NATTEN_API int natten_av(const natten_problem *problem, const natten_tensors *tensors);

/* Gradients of query, key and rpb, from logits_grad, query and key (rpb is not read). */
NATTEN_API int natten_qk_backward(const natten_problem *problem, const natten_tensors *tensors);

/* Gradients of attn and value, from out_grad, attn and value. */
NATTEN_API int natten_av_backward(const natten_problem *problem, const natten_tensors *tensors);

/* The tables above, a line each, in order: "dtypes float16 ...", "fields int32_t:dtype:1 ... int64_t:query_shape:3 ...",
 * "tensors query:CHANNELS ...", "functions forward ...". */
NATTEN_API const char *natten_cpu_interface(void);

/* NATTEN_CPU_ABI of the library. */
NATTEN_API int natten_cpu_abi(void);

/* The instruction set in use: "avx512", "avx2", "sse", "neon". The variable NATTEN_CPU_ISA, read once, asks for one. */
NATTEN_API const char *natten_cpu_isa(void);

/* Threads of a call that asks for none: NATTEN_NUM_THREADS, read once, else the machine's performance cores. */
NATTEN_API int natten_cpu_threads(void);

/* A function that calls body(data) on threads of the host at once, the calling thread among them, and returns when all
 * have returned. threads: how many; 0: as many as the host's own calls use. It may use fewer, one at least. flags: 0.
 * GOMP_parallel of GNU OpenMP is such a function. */
typedef void (*natten_cpu_region)(void (*body)(void *data), void *data, unsigned threads, unsigned flags);

/* From now on calls run on the threads of `region` instead of threads of their own; NULL: on their own again. A host
 * whose idle threads keep the cores busy for a while should give it. In a forked child, and where NATTEN_NUM_THREADS is
 * set, calls use threads of their own all the same. A call that finds the region taken by another computes alone. */
NATTEN_API void natten_cpu_use_region(natten_cpu_region region);

/* NULL, or a sentence that says which of the two variables has a value that cannot be used, and which values can. The
 * kernels run as if it were not set, so whoever loads them should call this first. */
NATTEN_API const char *natten_cpu_complaint(void);

#ifdef __cplusplus
}
#endif

#endif
