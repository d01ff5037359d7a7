/* Neighborhood attention on the CPU: the whole interface, plain C on raw pointers.
 *
 * Layout is heads-last. Tensors are described by element strides, so any view can be read and written; the kernels
 * allocate their own scratch memory, O(threads) and, for gradients, three float32 (float64) values per query row
 * and copies of the gradients of additional keys and of the bias: up to 64 of a small one, few of a large one.
 * Window arithmetic is kernels/window.h, the same file that the Metal kernels read.
 *
 * A row all of whose logits are -inf has out 0, lse -inf and gradients 0.
 *
 * Every function returns NATTEN_OK or one of the codes below and writes nothing outside its outputs. Calls may come
 * from any number of threads at once. Results are bit-equal for any number of threads. An input that is NULL is absent
 * (additional keys, bias, the gradient of lse); an output that is NULL is not computed (gradients only).
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

/* Changes with every change of this file. */
#define NATTEN_CPU_ABI 2

enum natten_status { NATTEN_OK = 0, NATTEN_NO_MEMORY = 1, NATTEN_BAD_PROBLEM = 2 };

enum natten_dtype { NATTEN_FLOAT16 = 0, NATTEN_BFLOAT16 = 1, NATTEN_FLOAT32 = 2, NATTEN_FLOAT64 = 3 };

/* Element strides of [B, *shape, H, C]: batch, axis 0..2 (rank of them, the rest ignored), head, channel. A tensor
 * without channels (lse) ignores the last, one without a batch or axes (additional keys: batch, token, -, -, head,
 * channel) uses axis 0 for its tokens. The bias and its gradient are contiguous and use no strides. */
typedef struct natten_tensor {
  void *data;
  int64_t stride[6];
} natten_tensor;

/* Accumulation is float32 (float64 for NATTEN_FLOAT64). lse, its gradient, the bias and the bias's gradient have that
 * dtype; every other tensor has `dtype`. */
typedef struct natten_problem {
  int32_t dtype;
  int32_t rank;              /* 1, 2 or 3 */
  int64_t batch;
  int64_t heads;             /* query heads, a multiple of kv_heads */
  int64_t kv_heads;
  int64_t head_dim;          /* D >= 1; ignored by av */
  int64_t head_dim_v;        /* D_v >= 1; ignored by qk */
  int64_t additional;        /* tokens of additional keys and values, 0: none */
  int64_t query_shape[3];    /* tokens per axis, outermost first; axes at and past `rank` are ignored */
  int64_t key_shape[3];      /* differs from query_shape in full attention only: rank 1, kernel_size >= both */
  int64_t kernel_size[3];
  int64_t stride[3];
  int64_t dilation[3];
  int32_t is_causal[3];
  int32_t threads;           /* 0: natten_cpu_threads(); else so many, but no more than NATTEN_NUM_THREADS where set */
  double scale;
} natten_problem;

/* Fused attention. bias: [H, prod(2w-1)] or NULL. out [B, *shape, H, D_v], lse [B, *shape, H]. */
NATTEN_API int natten_forward(const natten_problem *problem, const natten_tensor *query, const natten_tensor *key,
                              const natten_tensor *value, const natten_tensor *additional_keys,
                              const natten_tensor *additional_values, const natten_tensor *bias, natten_tensor *out,
                              natten_tensor *lse);

/* out and lse: what natten_forward made of the same inputs. */
NATTEN_API int natten_backward(const natten_problem *problem, const natten_tensor *out_grad,
                               const natten_tensor *lse_grad, const natten_tensor *query, const natten_tensor *key,
                               const natten_tensor *value, const natten_tensor *additional_keys,
                               const natten_tensor *additional_values, const natten_tensor *bias,
                               const natten_tensor *out, const natten_tensor *lse, natten_tensor *query_grad,
                               natten_tensor *key_grad, natten_tensor *value_grad,
                               natten_tensor *additional_keys_grad, natten_tensor *additional_values_grad,
                               natten_tensor *bias_grad);

/* Split ops. logits, attn and their gradients: [B, *shape, H, prod(w)], row-major over the window; a slot at or past
 * the window's end holds -inf in logits, is never read in attn or in a gradient, and gets a gradient of zero. */
NATTEN_API int natten_qk(const natten_problem *problem, const natten_tensor *query, const natten_tensor *key,
                         const natten_tensor *bias, natten_tensor *logits);

NATTEN_API int natten_qk_backward(const natten_problem *problem, const natten_tensor *logits_grad,
                                  const natten_tensor *query, const natten_tensor *key, natten_tensor *query_grad,
                                  natten_tensor *key_grad, natten_tensor *bias_grad);

NATTEN_API int natten_av(const natten_problem *problem, const natten_tensor *attn, const natten_tensor *value,
                         natten_tensor *out);

NATTEN_API int natten_av_backward(const natten_problem *problem, const natten_tensor *out_grad,
                                  const natten_tensor *attn, const natten_tensor *value, natten_tensor *attn_grad,
                                  natten_tensor *value_grad);

/* NATTEN_CPU_ABI of the library. */
NATTEN_API int natten_cpu_abi(void);

/* The instruction set in use: "avx512", "avx2", "sse", "neon". The variable NATTEN_CPU_ISA, read once, asks for one. */
NATTEN_API const char *natten_cpu_isa(void);

/* Threads of a call that asks for none: NATTEN_NUM_THREADS, read once, else the machine's performance cores. */
NATTEN_API int natten_cpu_threads(void);

/* NULL, or a sentence that says which of the two variables is set to something that cannot be used, and what can: the
 * kernels run as if it were not set, so whoever loads them asks this first. */
NATTEN_API const char *natten_cpu_complaint(void);

#ifdef __cplusplus
}
#endif

#endif
