// The C interface: checks the problem, chooses the instruction set, and lets no C++ exception escape.
#include "natten_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "../kernels/window.h"
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
constexpr int64_t kMaxCount = int64_t(1) << 29;

bool counts(int64_t number, int64_t least) { return number >= least && number <= kMaxCount; }

bool lies_within(int64_t start, int64_t length, int64_t full) {
  return counts(start, 0) && counts(length, 1) && start + length <= full;
}

// Whether the windows of all queries at hand lie among the keys at hand
bool keys_at_hand(const natten_problem& p, int a) {
  if (p.key_shape[a] == p.full_shape[a]) return true;
  const int full = int(p.full_shape[a]), w = int(p.kernel_size[a]), s = int(p.stride[a]), d = int(p.dilation[a]);
  const int first = int(p.query_start[a]), end = first + int(p.query_shape[a]);
  const int low = int(p.key_start[a]), high = low + int(p.key_shape[a]);
  for (int query = first; query < end && query < first + d; ++query) {  // the first one of each dilation group
    const int g = query % d, n = na::group_length(full, g, d), last = na::group_length(end, g, d) - 1;
    const bool causal = p.is_causal[a] != 0;
    if (na::window(query / d, n, w, s, causal).low < na::group_length(low, g, d)) return false;
    if (na::window(last, n, w, s, causal).high > na::group_length(high, g, d)) return false;
  }
  return true;
}

bool sound_axis(const natten_problem& p, int a) {
  const int64_t w = p.kernel_size[a], s = p.stride[a], d = p.dilation[a];
  if (!counts(p.full_shape[a], 1) || !counts(w, 1) || !counts(s, 1) || !counts(d, 1) || s > w) return false;
  if (!lies_within(p.query_start[a], p.query_shape[a], p.full_shape[a])) return false;
  if (!lies_within(p.key_start[a], p.key_shape[a], p.full_shape[a])) return false;
  const bool full_attention = p.rank == 1 && s == 1 && d == 1 && w >= p.full_shape[a];
  if (full_attention && p.query_start[a] == 0 && p.key_start[a] == 0) return true;
  return w * d <= p.full_shape[a] && keys_at_hand(p, a);
}

int64_t larger_dim(const natten_problem& p) {
  const int64_t dim = counts(p.head_dim, 1) ? p.head_dim : 0, dim_v = counts(p.head_dim_v, 1) ? p.head_dim_v : 0;
  return dim > dim_v ? dim : dim_v;
}

bool sound(const natten_problem* p) {
  if (!p || p->dtype < NATTEN_FLOAT16 || p->dtype > NATTEN_FLOAT64 || p->rank < 1 || p->rank > 3) return false;
  if (!counts(p->batch, 0) || !counts(p->heads, 1) || !counts(p->kv_heads, 1) || p->heads % p->kv_heads) return false;
  if (!counts(p->additional, 0) || p->threads < 0) return false;
  // Elements of the largest tensor without window slots, rpb included: offsets and sizes in bytes stay far from
  // overflow
  double elements = double(p->batch + 1) * double(p->heads) * double(p->additional + 1);
  for (int a = 0; a < p->rank; ++a) {
    if (!sound_axis(*p, a)) return false;
    elements *= double(p->query_shape[a] > p->key_shape[a] ? p->query_shape[a] : p->key_shape[a]);
  }
  return elements * double(1 + larger_dim(*p)) < 0x1p50;
}

bool has_dims(const natten_problem* p, bool dim, bool dim_v) {
  return (!dim || counts(p->head_dim, 1)) && (!dim_v || counts(p->head_dim_v, 1));
}

// Whether the tensors that a function needs are given; those of an empty batch may be NULL
template <typename... Tensors>
bool given(const natten_problem* p, const Tensors&... tensors) {
  return p->batch == 0 || (... && (tensors.data != nullptr));
}

bool additional_given(const natten_problem* p, const natten_tensors& t) {
  return p->additional == 0 || given(p, t.additional_keys, t.additional_values);
}

typedef int (*Function)(const natten_problem*, const natten_tensors*);

int guarded(Function function, const natten_problem* p, const natten_tensors* t) {
  try {
    return function(p, t);
  } catch (const std::bad_alloc&) {
    return NATTEN_NO_MEMORY;
  }
}

// --- the interface, described -----------------------------------------------------------------------------------

#define NATTEN_NAME(name) " " #name
#define NATTEN_DTYPE(NAME, name) " " #name
#define NATTEN_NUMBER(type, name) " " #type ":" #name ":1"
#define NATTEN_AXES(type, name) " " #type ":" #name ":3"
#define NATTEN_TENSOR(name, layout) " " #name ":" #layout
constexpr char kInterface[] = "dtypes" NATTEN_DTYPES(NATTEN_DTYPE)
    "\nfields" NATTEN_FIELDS(NATTEN_NUMBER, NATTEN_NUMBER, NATTEN_AXES)
    "\ntensors" NATTEN_TENSORS(NATTEN_TENSOR)
    "\nfunctions" NATTEN_FUNCTIONS(NATTEN_NAME);

}  // namespace
}  // namespace natten

using natten::additional_given;
using natten::chosen;
using natten::given;
using natten::guarded;
using natten::has_dims;
using natten::sound;

extern "C" {

int natten_forward(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, true, true)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->query, t->key, t->value, t->out, t->lse) || !additional_given(p, *t)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->forward, p, t);
}

int natten_backward(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, true, true)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->out_grad, t->query, t->key, t->value, t->out, t->lse)) return NATTEN_BAD_PROBLEM;
  if (!additional_given(p, *t) || (t->rpb_grad.data && !t->rpb.data)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->backward, p, t);
}

int natten_qk(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, true, false)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->query, t->key, t->logits)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->qk, p, t);
}

int natten_qk_backward(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, true, false)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->logits_grad, t->query, t->key)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->qk_backward, p, t);
}

int natten_av(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, false, true)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->attn, t->value, t->out)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->av, p, t);
}

int natten_av_backward(const natten_problem* p, const natten_tensors* t) {
  if (!t || !sound(p) || !has_dims(p, false, true)) return NATTEN_BAD_PROBLEM;
  if (!given(p, t->out_grad, t->attn, t->value)) return NATTEN_BAD_PROBLEM;
  return guarded(chosen().kernels->av_backward, p, t);
}

const char* natten_cpu_interface(void) { return natten::kInterface; }

int natten_cpu_abi(void) { return NATTEN_CPU_ABI; }

const char* natten_cpu_isa(void) { return chosen().name; }

int natten_cpu_threads(void) { return natten::pool_threads(); }

void natten_cpu_use_region(natten_cpu_region region) { natten::pool_use_region(region); }

const char* natten_cpu_complaint(void) {
  static const natten::Complaint complaint;
  return complaint.text[0] ? complaint.text : nullptr;
}

}  // extern "C"
