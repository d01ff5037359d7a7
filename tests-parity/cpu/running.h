// Random problems, the library run on them, and what is compared with the truth.
#pragma once

#include "reference.h"

inline int failures = 0;
inline double largest[4] = {0, 0, 0, 0};  // largest error found for each dtype, as a fraction of what is allowed

inline void check(bool holds, const char* what, const char* where) {
  if (holds) return;
  ++failures;
  if (failures < 40) printf("FAILED %s: %s\n", where, what);
}

// --- random problems ---------------------------------------------------------------------------------------

// The whole of an axis
inline void set_length(natten_problem& p, int axis, int64_t length) {
  p.full_shape[axis] = p.query_shape[axis] = p.key_shape[axis] = length, p.query_start[axis] = p.key_start[axis] = 0;
}

inline natten_problem random_problem(Random& random) {
  natten_problem p = {};
  p.dtype = pick(random, 0, 3), p.rank = pick(random, 1, 3), p.batch = pick(random, 1, 2);
  p.kv_heads = pick(random, 1, 2), p.heads = p.kv_heads * pick(random, 1, 3);
  const int dims[] = {1, 2, 3, 5, 8, 16, 17, 20, 33, 64};
  p.head_dim = dims[pick(random, 0, 9)], p.head_dim_v = dims[pick(random, 0, 9)];
  p.additional = pick(random, 0, 2) ? 0 : pick(random, 1, 21);
  const double scales[] = {0.5, 0.125, 0.0, -0.25};
  p.scale = scales[pick(random, 0, 3)];
  const int longest[] = {70, 13, 7};
  for (int a = 0; a < p.rank; ++a) {
    const int length = pick(random, 1, longest[p.rank - 1]);
    set_length(p, a, length);
    p.dilation[a] = pick(random, 0, 2) ? 1 : pick(random, 1, length);
    p.kernel_size[a] = pick(random, 1, int(length / p.dilation[a]));
    p.stride[a] = pick(random, 0, 1) ? 1 : pick(random, 1, int(p.kernel_size[a]));
    p.is_causal[a] = pick(random, 0, 2) == 0;
  }
  return p;
}

// Full attention: queries and keys differ in number
inline natten_problem random_attention(Random& random) {
  natten_problem p = random_problem(random);
  p.rank = 1, p.additional = 0;
  p.query_shape[0] = pick(random, 1, 70), p.key_shape[0] = pick(random, 1, 70);
  p.full_shape[0] = p.kernel_size[0] = std::max(p.query_shape[0], p.key_shape[0]);
  p.stride[0] = p.dilation[0] = 1;
  return p;
}

// Where keys must begin and end for a range of queries, token by token
inline na::Span needed_keys(const natten_problem& p, int a, int first, int end) {
  const int d = int(p.dilation[a]);
  na::Span needed = {int(p.full_shape[a]), 0};
  for (int token = first; token < end; ++token) {
    const int group = token % d, n = na::group_length(int(p.full_shape[a]), group, d);
    const na::Span window = na::window(token / d, n, int(p.kernel_size[a]), int(p.stride[a]), p.is_causal[a] != 0);
    needed = {std::min(needed.low, window.low * d + group),
              std::max(needed.high, (std::min(window.high, n) - 1) * d + group + 1)};
  }
  return needed;
}

// Cuts a piece out of an axis: the queries from `first` to `end`, the keys that they need and up to `more` at each end
inline void cut(Random& random, natten_problem& p, int a, int first, int end, int more) {
  const na::Span needed = needed_keys(p, a, first, end);
  p.query_start[a] = first, p.query_shape[a] = end - first;
  p.key_start[a] = std::max(0, needed.low - pick(random, 0, more));
  p.key_shape[a] = std::min<int64_t>(p.full_shape[a], needed.high + pick(random, 0, more)) - p.key_start[a];
}

inline natten_problem random_piece(Random& random) {
  natten_problem p = random_problem(random);
  for (int a = 0; a < p.rank; ++a) {
    const int full = int(p.full_shape[a]), first = pick(random, 0, full - 1), end = pick(random, first + 1, full);
    cut(random, p, a, first, end, pick(random, 0, 1) ? 0 : full);
  }
  return p;
}

inline int scalar_dtype(const natten_problem& p) { return p.dtype == NATTEN_FLOAT64 ? NATTEN_FLOAT64 : NATTEN_FLOAT32; }

inline std::vector<int64_t> dims_of(const natten_problem& p, const int64_t* shape, int64_t heads, int64_t channels) {
  std::vector<int64_t> dims = {p.batch};
  dims.insert(dims.end(), shape, shape + p.rank);
  dims.push_back(heads);
  if (channels >= 0) dims.push_back(channels);
  return dims;
}

inline Fused random_fused(Random& random, const natten_problem& p) {
  Fused f;
  f.p = p;
  const auto input = [&](int dtype, const std::vector<int64_t>& dims, int most) {
    Array a = make_array(random, dtype, dims, pick(random, 0, most));
    fill(random, a);
    return a;
  };
  f.query = input(p.dtype, dims_of(p, p.query_shape, p.heads, p.head_dim), 2);
  f.key = input(p.dtype, dims_of(p, p.key_shape, p.kv_heads, p.head_dim), 2);
  f.value = input(p.dtype, dims_of(p, p.key_shape, p.kv_heads, p.head_dim_v), 2);
  f.additional_keys = input(p.dtype, {p.batch, p.additional, p.kv_heads, p.head_dim}, 2);
  f.additional_values = input(p.dtype, {p.batch, p.additional, p.kv_heads, p.head_dim_v}, 2);
  f.out_grad = input(p.dtype, dims_of(p, p.query_shape, p.heads, p.head_dim_v), 2);
  f.lse_grad = input(scalar_dtype(p), dims_of(p, p.query_shape, p.heads, -1), 2);
  f.rpb = input(scalar_dtype(p), {p.heads, rpb_entries(p)}, 0);
  bool plain = true;
  for (int a = 0; a < p.rank; ++a) plain = plain && p.stride[a] == 1;
  f.has_rpb = plain && pick(random, 0, 1);
  return f;
}

// Masks some keys, perhaps all of the first batch item. They hold NaN, which must not matter
inline void mask_keys(Random& random, Fused& f) {
  const int64_t keys = tokens(f.p, f.p.key_shape);
  const int hidden = pick(random, 0, 10);  // tenths of the keys
  f.key = make_array(random, f.p.dtype, f.key.dims, pick(random, 0, 1)), fill(random, f.key);
  f.value = make_array(random, f.p.dtype, f.value.dims, pick(random, 0, 1)), fill(random, f.value);
  for (int64_t i = 0; i < f.p.batch * keys; ++i) f.key_mask.push_back(pick(random, 1, 10) > hidden);
  if (pick(random, 0, 1)) std::fill(f.key_mask.begin(), f.key_mask.begin() + keys, 0);
  for (Array* a : {&f.key, &f.value}) {
    const int64_t width = a->dims.back() * f.p.kv_heads;
    for (int64_t i = 0; i < a->count(); ++i) {
      if (!f.key_mask[size_t(i / width)]) a->set(i, NAN);
    }
  }
}

// --- running the library -----------------------------------------------------------------------------------

struct Results {
  Array out, lse, query, key, value, additional_keys, additional_values, rpb;

  std::vector<Array*> all() { return {&out, &lse, &query, &key, &value, &additional_keys, &additional_values, &rpb}; }
};

inline Array output_like(Random& random, const Array& like) {
  return make_array(random, like.dtype, like.dims, pick(random, 0, 1));
}

inline Results outputs(Random& random, const Fused& f) {
  Results r;
  r.out = output_like(random, f.out_grad), r.lse = output_like(random, f.lse_grad);
  r.query = output_like(random, f.query), r.key = output_like(random, f.key), r.value = output_like(random, f.value);
  r.additional_keys = output_like(random, f.additional_keys);
  r.additional_values = output_like(random, f.additional_values);
  r.rpb = make_array(random, f.rpb.dtype, f.rpb.dims, 0);
  return r;
}

inline natten_tensor flat(Array& a) { return {a.bytes.data(), {0, 0, 0, 0, 0, 0}}; }

// The inputs of a fused problem, and all of its results
inline natten_tensors fused_tensors(Fused& f, Results& r) {
  natten_tensors t = {};
  t.query = tensor_of(f.query), t.key = tensor_of(f.key), t.value = tensor_of(f.value), t.out = tensor_of(r.out);
  t.query_grad = tensor_of(r.query), t.key_grad = tensor_of(r.key), t.value_grad = tensor_of(r.value);
  t.out_grad = tensor_of(f.out_grad), t.lse_grad = tensor_of(f.lse_grad, false), t.lse = tensor_of(r.lse, false);
  if (f.p.additional) {
    t.additional_keys = tensor_of(f.additional_keys), t.additional_values = tensor_of(f.additional_values);
    t.additional_keys_grad = tensor_of(r.additional_keys), t.additional_values_grad = tensor_of(r.additional_values);
  }
  if (f.has_rpb) t.rpb = flat(f.rpb), t.rpb_grad = flat(r.rpb);
  if (!f.key_mask.empty()) t.key_mask.data = f.key_mask.data();
  return t;
}

// Forward and backward; where a function fails, r is left unchanged
inline int run_fused(Fused& f, Results& r, int threads) {
  natten_problem p = f.p;
  p.threads = threads;
  natten_tensors t = fused_tensors(f, r);
  const int status = natten_forward(&p, &t);
  return status == NATTEN_OK ? natten_backward(&p, &t) : status;
}

inline void compare(const natten_problem& p, const Array& found, const Values& truth, const char* what,
                    const char* where) {
  double top = 0, apart = 0;
  for (double x : truth) top = std::max(top, std::isfinite(x) ? std::fabs(x) : 0.0);
  for (int64_t i = 0; i < found.count(); ++i) {
    const double x = found.get(i), y = truth[size_t(i)];
    if (x == y) continue;
    apart = std::max(apart, std::isfinite(x) && std::isfinite(y) ? std::fabs(x - y) : INFINITY);
  }
  // 16 roundings of the dtype, 64 of the accumulator, and room for sums that cancel
  const double allowed = (16 * rounding_of(p.dtype) + 64 * rounding_of(scalar_dtype(p))) * std::max(top, 1.0);
  largest[p.dtype] = std::max(largest[p.dtype], apart / allowed);
  char text[200];
  snprintf(text, sizeof(text), "%s is %.3g away, %.3g allowed (dtype %d, rank %d)", what, apart, allowed, p.dtype,
           int(p.rank));
  check(apart <= allowed, text, where);
  check(untouched_between(found), what, "something between its elements was written");
}
