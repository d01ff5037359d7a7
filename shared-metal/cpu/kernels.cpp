// Compiled once per instruction set, with NATTEN_ISA naming the namespace: tensors in, templates called by dtype.
#include "backward.h"
#include "forward.h"
#include "isa.h"
#include "split.h"

namespace natten {
namespace NATTEN_ISA {
namespace {

int scalar_dtype(const natten_problem* p) { return p->dtype == NATTEN_FLOAT64 ? NATTEN_FLOAT64 : NATTEN_FLOAT32; }

Tensor tensor(const natten_problem* p, const natten_tensor* given) { return pad_tensor(given, p->rank, p->dtype); }

Tensor scalars(const natten_problem* p, const natten_tensor* given) {
  return pad_tensor(given, p->rank, scalar_dtype(p));
}

Tensor tokens(const natten_problem* p, const natten_tensor* given) { return pad_tensor(given, 1, p->dtype); }

// Wide patches visit the same pairs in more and smaller blocks, which is worth it if pieces share enough columns.
bool wide_pays(const Problem& p) {
  return kWidePieces > 1 && shared_part<Wide<float>>(p) >= 0.5;
}

// Calls the template for the dtype and the patch
#define NATTEN_CALL(function, op)                                             \
  ((op).problem.dtype == NATTEN_FLOAT64 ? function<Narrow<double>>(op)        \
   : wide_pays((op).problem)            ? function<Wide<float>>(op)           \
                                        : function<Narrow<float>>(op))

int run_forward(const natten_problem* p, const natten_tensor* query, const natten_tensor* key,
                const natten_tensor* value, const natten_tensor* additional_keys,
                const natten_tensor* additional_values, const natten_tensor* bias, natten_tensor* out,
                natten_tensor* lse) {
  Operands op;
  op.problem = pad_problem(*p);
  op.query = tensor(p, query), op.key = tensor(p, key), op.value = tensor(p, value);
  op.additional_keys = tokens(p, additional_keys), op.additional_values = tokens(p, additional_values);
  op.bias = bias ? bias->data : nullptr;
  op.out = tensor(p, out), op.lse = scalars(p, lse);
  return NATTEN_CALL(forward, op);
}

int run_backward(const natten_problem* p, const natten_tensor* out_grad, const natten_tensor* lse_grad,
                 const natten_tensor* query, const natten_tensor* key, const natten_tensor* value,
                 const natten_tensor* additional_keys, const natten_tensor* additional_values,
                 const natten_tensor* bias, const natten_tensor* out, const natten_tensor* lse,
                 natten_tensor* query_grad, natten_tensor* key_grad, natten_tensor* value_grad,
                 natten_tensor* additional_keys_grad, natten_tensor* additional_values_grad,
                 natten_tensor* bias_grad) {
  Operands op;
  op.problem = pad_problem(*p);
  op.out_grad = tensor(p, out_grad), op.lse_grad = scalars(p, lse_grad);
  op.query = tensor(p, query), op.key = tensor(p, key), op.value = tensor(p, value);
  op.additional_keys = tokens(p, additional_keys), op.additional_values = tokens(p, additional_values);
  op.bias = bias ? bias->data : nullptr;
  op.out = tensor(p, out), op.lse = scalars(p, lse);
  op.query_grad = tensor(p, query_grad), op.key_grad = tensor(p, key_grad), op.value_grad = tensor(p, value_grad);
  op.additional_keys_grad = tokens(p, additional_keys_grad);
  op.additional_values_grad = tokens(p, additional_values_grad);
  op.bias_grad = bias_grad ? bias_grad->data : nullptr;
  return NATTEN_CALL(backward, op);
}

int run_qk(const natten_problem* p, const natten_tensor* query, const natten_tensor* key, const natten_tensor* bias,
           natten_tensor* logits) {
  Operands op;
  op.problem = pad_problem(*p);
  op.query = tensor(p, query), op.key = tensor(p, key), op.slots = tensor(p, logits);
  op.bias = bias ? bias->data : nullptr;
  return NATTEN_CALL(qk, op);
}

int run_qk_backward(const natten_problem* p, const natten_tensor* logits_grad, const natten_tensor* query,
                    const natten_tensor* key, natten_tensor* query_grad, natten_tensor* key_grad,
                    natten_tensor* bias_grad) {
  Operands op;
  op.problem = pad_problem(*p);
  op.slots_grad = tensor(p, logits_grad), op.query = tensor(p, query), op.key = tensor(p, key);
  op.query_grad = tensor(p, query_grad), op.key_grad = tensor(p, key_grad);
  op.bias_grad = bias_grad ? bias_grad->data : nullptr;
  return NATTEN_CALL(qk_backward, op);
}

int run_av(const natten_problem* p, const natten_tensor* attn, const natten_tensor* value, natten_tensor* out) {
  Operands op;
  op.problem = pad_problem(*p);
  op.slots = tensor(p, attn), op.value = tensor(p, value), op.out = tensor(p, out);
  return NATTEN_CALL(av, op);
}

int run_av_backward(const natten_problem* p, const natten_tensor* out_grad, const natten_tensor* attn,
                    const natten_tensor* value, natten_tensor* attn_grad, natten_tensor* value_grad) {
  Operands op;
  op.problem = pad_problem(*p);
  op.out_grad = tensor(p, out_grad), op.slots = tensor(p, attn), op.value = tensor(p, value);
  op.slots_grad = tensor(p, attn_grad), op.value_grad = tensor(p, value_grad);
  return NATTEN_CALL(av_backward, op);
}

}  // namespace

extern const Kernels kernels = {run_forward, run_backward, run_qk, run_qk_backward, run_av, run_av_backward};

}  // namespace NATTEN_ISA
}  // namespace natten
