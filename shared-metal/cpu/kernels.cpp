// Compiled once per instruction set, with NATTEN_ISA naming the namespace: tensors in, templates called by dtype.
#include "backward.h"
#include "forward.h"
#include "isa.h"
#include "split.h"

namespace natten {
namespace NATTEN_ISA {
namespace {

// All tensors of the interface; those that are absent have no data
Operands operands(const natten_problem* p, const natten_tensors* t) {
  const int rank = int(p->rank), sums = p->dtype == NATTEN_FLOAT64 ? NATTEN_FLOAT64 : NATTEN_FLOAT32;
  const auto tensor = [&](const natten_tensor& given) { return pad_tensor(given, rank, p->dtype); };
  const auto rows = [&](const natten_tensor& given) { return pad_tensor(given, rank, sums); };
  const auto tokens = [&](const natten_tensor& given) { return pad_tensor(given, 1, p->dtype); };
  Operands op;
  op.problem = pad_problem(*p);
  op.query = tensor(t->query), op.key = tensor(t->key), op.value = tensor(t->value);
  op.query_grad = tensor(t->query_grad), op.key_grad = tensor(t->key_grad), op.value_grad = tensor(t->value_grad);
  op.additional_keys = tokens(t->additional_keys), op.additional_values = tokens(t->additional_values);
  op.additional_keys_grad = tokens(t->additional_keys_grad);
  op.additional_values_grad = tokens(t->additional_values_grad);
  op.out = tensor(t->out), op.out_grad = tensor(t->out_grad);
  op.lse = rows(t->lse), op.lse_grad = rows(t->lse_grad);
  op.slots = tensor(t->logits.data ? t->logits : t->attn);
  op.slots_grad = tensor(t->logits_grad.data ? t->logits_grad : t->attn_grad);
  // One channel of one head; strides in bytes
  op.key_mask = contiguous_tensor(t->key_mask.data, op.problem.dtype, op.problem.key_shape, 1, 1);
  op.rpb = t->rpb.data, op.rpb_grad = t->rpb_grad.data;
  return op;
}

// Wide patches visit the same pairs in more and smaller blocks, which is worth it if panels share enough columns.
bool wide_pays(const Problem& p) {
  return kWidePanels > 1 && shared_part<Wide<float>>(p) >= 0.5;
}

// Calls the template for the dtype and the patch
#define NATTEN_CALL(function, op)                                             \
  ((op).problem.dtype == NATTEN_FLOAT64 ? function<Narrow<double>>(op)        \
   : wide_pays((op).problem)            ? function<Wide<float>>(op)           \
                                        : function<Narrow<float>>(op))

#define NATTEN_RUN(name)                                                 \
  int run_##name(const natten_problem* p, const natten_tensors* t) {      \
    const Operands op = operands(p, t);                                    \
    return NATTEN_CALL(name, op);                                          \
  }
NATTEN_FUNCTIONS(NATTEN_RUN)

}  // namespace

#define NATTEN_ENTRY(name) run_##name,
extern const Kernels kernels = {NATTEN_FUNCTIONS(NATTEN_ENTRY)};

}  // namespace NATTEN_ISA
}  // namespace natten
