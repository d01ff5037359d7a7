// The C interface: checks the problem, chooses the instruction set, and keeps C++ exceptions from leaving.
#include "natten_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "isa.h"
#include "pool.h"

namespace natten {
namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
  bool runs;
};

// Best first
constexpr int kChoices = 3;
struct Choices {
  Choice all[kChoices];
};

Choices choices() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {{{"avx512", &avx512::kernels, has_avx512}, {"avx2", &avx2::kernels, has_avx2}, {"sse", &sse::kernels, true}}};
#else
  return {{{"neon", &neon::kernels, true}, {"", nullptr, false}, {"", nullptr, false}}};
#endif
}

// NATTEN_CPU_ISA, or NULL
const char* asked_isa() {
  const char* asked = getenv("NATTEN_CPU_ISA");
  return asked && *asked ? asked : nullptr;
}

// The requested one if it runs here, else the best that does; the setting is sound unless they differ
struct Chosen {
  Choice choice;
  bool sound;
};

Chosen choose() {
  const Choices found = choices();
  const char* asked = asked_isa();
  for (const Choice& choice : found.all) {
    if (asked && choice.runs && strcmp(asked, choice.name) == 0) return {choice, true};
  }
  for (const Choice& choice : found.all) {
    if (choice.runs) return {choice, !asked};
  }
  return {found.all[0], !asked};
}

const Chosen& chosen_once() {
  static const Chosen chosen = choose();
  return chosen;
}

const Choice& chosen() { return chosen_once().choice; }

// What is wrong with the variables, as they are read; empty if nothing is
struct Complaint {
  char text[400] = "";

  Complaint() {
    const char* threads = getenv("NATTEN_NUM_THREADS");
    const char* isa = asked_isa();
    if (!pool_setting_is_sound()) {
      snprintf(text, sizeof(text),
               "the environment variable NATTEN_NUM_THREADS is '%.60s'; it takes a number of threads, 1 or more",
               threads ? threads : "");
    } else if (!chosen_once().sound) {
      const Choices found = choices();
      int end = snprintf(text, sizeof(text),
                         "the environment variable NATTEN_CPU_ISA is '%.60s'; this machine runs", isa ? isa : "");
      const char* between = " ";
      for (const Choice& choice : found.all) {
        if (!choice.runs) continue;
        end += snprintf(text + end, sizeof(text) - size_t(end), "%s'%s'", between, choice.name);
        between = ", ";
      }
    }
  }
};

// --- checks ------------------------------------------------------------------------------------------------

// Positions and sums of a position and a window are ints in kernels/window.h
constexpr int64_t kMost = int64_t(1) << 29;

bool counts(int64_t number, int64_t least) { return number >= least && number <= kMost; }

bool sound_axis(const natten_problem& p, int a) {
  const int64_t w = p.kernel_size[a], s = p.stride[a], d = p.dilation[a];
  if (!counts(p.query_shape[a], 1) || !counts(p.key_shape[a], 1)) return false;
  if (!counts(w, 1) || !counts(s, 1) || !counts(d, 1) || s > w) return false;
  if (p.query_shape[a] == p.key_shape[a]) return w * d <= p.key_shape[a];
  return p.rank == 1 && s == 1 && d == 1 && w >= p.query_shape[a] && w >= p.key_shape[a];
}

int64_t most_dim(const natten_problem& p) {
  const int64_t dim = counts(p.head_dim, 1) ? p.head_dim : 0, dim_v = counts(p.head_dim_v, 1) ? p.head_dim_v : 0;
  return dim > dim_v ? dim : dim_v;
}

bool sound(const natten_problem* p) {
  if (!p || p->dtype < NATTEN_FLOAT16 || p->dtype > NATTEN_FLOAT64 || p->rank < 1 || p->rank > 3) return false;
  if (!counts(p->batch, 0) || !counts(p->heads, 1) || !counts(p->kv_heads, 1) || p->heads % p->kv_heads) return false;
  if (!counts(p->additional, 0) || p->threads < 0) return false;
  // Elements of the largest tensor that is not one of slots, tables included: offsets and sizes in bytes stay far from overflow
  double elements = double(p->batch + 1) * double(p->heads) * double(p->additional + 1);
  for (int a = 0; a < p->rank; ++a) {
    if (!sound_axis(*p, a)) return false;
    elements *= double(p->query_shape[a] > p->key_shape[a] ? p->query_shape[a] : p->key_shape[a]);
  }
  return elements * double(1 + most_dim(*p)) < 0x1p50;
}

bool has_dims(const natten_problem* p, bool dim, bool dim_v) {
  return (!dim || counts(p->head_dim, 1)) && (!dim_v || counts(p->head_dim_v, 1));
}

template <typename... Tensors>
bool given(const Tensors*... tensors) {
  return (... && (tensors != nullptr));
}

bool additional_given(const natten_problem* p, const natten_tensor* keys, const natten_tensor* values) {
  return p->additional == 0 || given(keys, values);
}

template <typename Call>
int guarded(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return NATTEN_NO_MEMORY;
  }
}

}  // namespace
}  // namespace natten

using natten::chosen;
using natten::given;
using natten::guarded;

extern "C" {

int natten_forward(const natten_problem* p, const natten_tensor* query, const natten_tensor* key,
                   const natten_tensor* value, const natten_tensor* additional_keys,
                   const natten_tensor* additional_values, const natten_tensor* bias, natten_tensor* out,
                   natten_tensor* lse) {
  if (!natten::sound(p) || !natten::has_dims(p, true, true)) return NATTEN_BAD_PROBLEM;
  if (!given(query, key, value, out, lse)) return NATTEN_BAD_PROBLEM;
  if (!natten::additional_given(p, additional_keys, additional_values)) return NATTEN_BAD_PROBLEM;
  return guarded([&] {
    return chosen().kernels->forward(p, query, key, value, additional_keys, additional_values, bias, out, lse);
  });
}

int natten_backward(const natten_problem* p, const natten_tensor* out_grad, const natten_tensor* lse_grad,
                    const natten_tensor* query, const natten_tensor* key, const natten_tensor* value,
                    const natten_tensor* additional_keys, const natten_tensor* additional_values,
                    const natten_tensor* bias, const natten_tensor* out, const natten_tensor* lse,
                    natten_tensor* query_grad, natten_tensor* key_grad, natten_tensor* value_grad,
                    natten_tensor* additional_keys_grad, natten_tensor* additional_values_grad,
                    natten_tensor* bias_grad) {
  if (!natten::sound(p) || !natten::has_dims(p, true, true)) return NATTEN_BAD_PROBLEM;
  if (!given(out_grad, query, key, value, out, lse) || (bias_grad && !bias)) return NATTEN_BAD_PROBLEM;
  if (!natten::additional_given(p, additional_keys, additional_values)) return NATTEN_BAD_PROBLEM;
  return guarded([&] {
    return chosen().kernels->backward(p, out_grad, lse_grad, query, key, value, additional_keys, additional_values,
                                      bias, out, lse, query_grad, key_grad, value_grad, additional_keys_grad,
                                      additional_values_grad, bias_grad);
  });
}

int natten_qk(const natten_problem* p, const natten_tensor* query, const natten_tensor* key, const natten_tensor* bias,
              natten_tensor* logits) {
  if (!natten::sound(p) || !natten::has_dims(p, true, false) || !given(query, key, logits)) return NATTEN_BAD_PROBLEM;
  return guarded([&] { return chosen().kernels->qk(p, query, key, bias, logits); });
}

int natten_qk_backward(const natten_problem* p, const natten_tensor* logits_grad, const natten_tensor* query,
                       const natten_tensor* key, natten_tensor* query_grad, natten_tensor* key_grad,
                       natten_tensor* bias_grad) {
  if (!natten::sound(p) || !natten::has_dims(p, true, false)) return NATTEN_BAD_PROBLEM;
  if (!given(logits_grad, query, key)) return NATTEN_BAD_PROBLEM;
  return guarded([&] {
    return chosen().kernels->qk_backward(p, logits_grad, query, key, query_grad, key_grad, bias_grad);
  });
}

int natten_av(const natten_problem* p, const natten_tensor* attn, const natten_tensor* value, natten_tensor* out) {
  if (!natten::sound(p) || !natten::has_dims(p, false, true) || !given(attn, value, out)) return NATTEN_BAD_PROBLEM;
  return guarded([&] { return chosen().kernels->av(p, attn, value, out); });
}

int natten_av_backward(const natten_problem* p, const natten_tensor* out_grad, const natten_tensor* attn,
                       const natten_tensor* value, natten_tensor* attn_grad, natten_tensor* value_grad) {
  if (!natten::sound(p) || !natten::has_dims(p, false, true)) return NATTEN_BAD_PROBLEM;
  if (!given(out_grad, attn, value)) return NATTEN_BAD_PROBLEM;
  return guarded([&] { return chosen().kernels->av_backward(p, out_grad, attn, value, attn_grad, value_grad); });
}

int natten_cpu_abi(void) { return NATTEN_CPU_ABI; }

const char* natten_cpu_isa(void) { return chosen().name; }

int natten_cpu_threads(void) { return natten::pool_threads(); }

const char* natten_cpu_complaint(void) {
  static const natten::Complaint complaint;
  return complaint.text[0] ? complaint.text : nullptr;
}

}  // extern "C"
