// Neighborhood attention written to be obvious: lists of pairs, double precision, no blocks, no lse.
#pragma once

#include "arrays.h"

#include "../../shared-metal/kernels/window.h"

struct Pair {
  int64_t key, slot, offset;  // token, slot of the window, entry of rpb
};

inline int64_t tokens(const natten_problem& p, const int64_t* shape) {
  int64_t n = 1;
  for (int a = 0; a < p.rank; ++a) n *= shape[a];
  return n;
}

inline int64_t slots(const natten_problem& p) { return tokens(p, p.kernel_size); }

inline int64_t rpb_entries(const natten_problem& p) {
  int64_t n = 1;
  for (int a = 0; a < p.rank; ++a) n *= 2 * p.kernel_size[a] - 1;
  return n;
}

// The keys of every query, axis by axis
inline std::vector<std::vector<Pair>> neighbors(const natten_problem& p) {
  std::vector<std::vector<Pair>> all(size_t(tokens(p, p.query_shape)));
  for (size_t i = 0; i < all.size(); ++i) {
    std::vector<Pair> pairs = {{0, 0, 0}};
    int64_t rest = int64_t(i), below = int64_t(all.size());
    for (int a = 0; a < p.rank; ++a) {
      below /= p.query_shape[a];
      const int token = int(rest / below + p.query_start[a]), d = int(p.dilation[a]), w = int(p.kernel_size[a]);
      const int position = token / d, n = na::group_length(int(p.full_shape[a]), token % d, d);
      rest %= below;
      const na::Span span = na::window(position, n, w, int(p.stride[a]), p.is_causal[a] != 0);
      std::vector<Pair> longer;
      for (const Pair& pair : pairs) {
        for (int key = span.low; key < std::min(span.high, n); ++key) {
          const int64_t at_hand = key * d + token % d - p.key_start[a];
          if (at_hand < 0 || at_hand >= p.key_shape[a]) continue;  // full attention: other keys do not exist
          longer.push_back({pair.key * p.key_shape[a] + at_hand, pair.slot * w + key - span.low,
                            pair.offset * (2 * w - 1) + key - position + w - 1});
        }
      }
      pairs = longer;
    }
    all[i] = pairs;
  }
  return all;
}

typedef std::vector<double> Values;

inline double dot(const Array& a, int64_t row_a, const Array& b, int64_t row_b) {
  const int64_t width = a.dims.back();
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += a.get(row_a * width + d) * b.get(row_b * width + d);
  return sum;
}

inline void add_row(Values& sum, int64_t row_s, double factor, const Array& x, int64_t row_x) {
  const int64_t width = x.dims.back();
  for (int64_t d = 0; d < width; ++d) sum[size_t(row_s * width + d)] += factor * x.get(row_x * width + d);
}

inline Values zeros(const Array& like) { return Values(size_t(like.count()), 0.0); }

// Inputs of the fused operation; additional keys may have no elements, and rpb counts only where has_rpb is set
struct Fused {
  natten_problem p;
  Array query, key, value, additional_keys, additional_values, rpb, out_grad, lse_grad;
  bool has_rpb = false;
  std::vector<unsigned char> key_mask;  // [B, tokens]; without elements: none

  bool sees(int64_t batch, int64_t key) const {
    return key_mask.empty() || key_mask[size_t(batch * tokens(p, p.key_shape) + key)];
  }
};

struct Truth {
  Values out, lse, query, key, value, additional_keys, additional_values, rpb;
};

// For each key that a query sees in one head: visit(whether it is additional, row of key and value, rpb entry or -1)
template <typename Visit>
void see(const Fused& f, int64_t batch, int64_t head, const std::vector<Pair>& pairs, const Visit& visit) {
  const int64_t kv = head / (f.p.heads / f.p.kv_heads), keys = tokens(f.p, f.p.key_shape);
  for (const Pair& pair : pairs) {
    if (!f.sees(batch, pair.key)) continue;
    visit(false, f.key.row(batch, pair.key, kv, keys, f.p.kv_heads), head * rpb_entries(f.p) + pair.offset);
  }
  for (int64_t s = 0; s < f.p.additional; ++s) visit(true, f.key.row(batch, s, kv, f.p.additional, f.p.kv_heads), -1);
}

inline double logit(const Fused& f, int64_t query_row, bool additional, int64_t key_row, int64_t entry) {
  const double product = f.p.scale * dot(f.query, query_row, additional ? f.additional_keys : f.key, key_row);
  return product + (f.has_rpb && entry >= 0 ? f.rpb.get(entry) : 0.0);
}

inline void one_query(const Fused& f, int64_t batch, int64_t i, int64_t head, const std::vector<Pair>& pairs,
                      Truth& t) {
  const int64_t row = f.query.row(batch, i, head, tokens(f.p, f.p.query_shape), f.p.heads);
  double top = -INFINITY, total = 0, mean = 0;
  see(f, batch, head, pairs, [&](bool additional, int64_t key, int64_t entry) {
    top = std::max(top, logit(f, row, additional, key, entry));
  });
  see(f, batch, head, pairs, [&](bool additional, int64_t key, int64_t entry) {
    const double weight = std::exp(logit(f, row, additional, key, entry) - top);
    total += weight;
    mean += weight * dot(f.out_grad, row, additional ? f.additional_values : f.value, key);
    add_row(t.out, row, weight, additional ? f.additional_values : f.value, key);
  });
  t.lse[size_t(row)] = top + std::log(total);
  if (total == 0) return;
  for (int64_t d = 0; d < f.p.head_dim_v; ++d) t.out[size_t(row * f.p.head_dim_v + d)] /= total;
  see(f, batch, head, pairs, [&](bool additional, int64_t key, int64_t entry) {
    const double weight = std::exp(logit(f, row, additional, key, entry) - top) / total;
    const double product = dot(f.out_grad, row, additional ? f.additional_values : f.value, key);
    const double gradient = weight * (product - mean / total + f.lse_grad.get(row));
    add_row(t.query, row, f.p.scale * gradient, additional ? f.additional_keys : f.key, key);
    add_row(additional ? t.additional_keys : t.key, key, f.p.scale * gradient, f.query, row);
    add_row(additional ? t.additional_values : t.value, key, weight, f.out_grad, row);
    if (f.has_rpb && entry >= 0) t.rpb[size_t(entry)] += gradient;
  });
}

inline Truth fused_truth(const Fused& f) {
  Truth t;
  t.out = zeros(f.out_grad), t.lse = zeros(f.lse_grad), t.query = zeros(f.query), t.key = zeros(f.key);
  t.value = zeros(f.value), t.additional_keys = zeros(f.additional_keys);
  t.additional_values = zeros(f.additional_values), t.rpb = zeros(f.rpb);
  const std::vector<std::vector<Pair>> all = neighbors(f.p);
  for (int64_t batch = 0; batch < f.p.batch; ++batch) {
    for (size_t i = 0; i < all.size(); ++i) {
      for (int64_t head = 0; head < f.p.heads; ++head) one_query(f, batch, int64_t(i), head, all[i], t);
    }
  }
  return t;
}

// Visits every pair of the split operations: (query row, key row, element of the slots, rpb entry)
template <typename Visit>
void each_pair(const natten_problem& p, const Visit& visit) {
  const std::vector<std::vector<Pair>> all = neighbors(p);
  const int64_t queries = int64_t(all.size()), keys = tokens(p, p.key_shape), count = slots(p);
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t row = (batch * queries + i) * p.heads + head, kv = head / (p.heads / p.kv_heads);
        for (const Pair& pair : all[size_t(i)]) {
          visit(row, (batch * keys + pair.key) * p.kv_heads + kv, row * count + pair.slot,
                head * rpb_entries(p) + pair.offset);
        }
      }
    }
  }
}
