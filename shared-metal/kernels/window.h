// Which keys a query attends to, and which queries attend to a key: one axis, closed forms.
//
// An axis of length L with dilation d splits into d groups; group g holds the tokens g, g + d, g + 2d, ..., and
// everything below counts positions inside a group of n = ceil((L - g) / d) tokens:
//
//   not causal   leader = min((p / s) * s + s / 2, n - 1);   start = clamp(leader - w / 2, 0, n - w);   end = start + w
//   causal       leader = min((p / s) * s + s - 1, n - 1);   start = max(leader - w + 1, 0);            end = p + 1
//
// window.py has the same lines in Python, and nothing else has them. Start and end never decrease with p: for p0 .. p1
//   all windows lie in [start(p0), end(p1))   and share   [start(p1), end(p0))
//
// Valid C++17 as well as Metal. Source: NATTEN (arXiv 2204.07143), stride as in arXiv 2504.16922.
#pragma once

#ifdef __METAL_VERSION__
#define NA_FUNC METAL_FUNC
#else
#define NA_FUNC inline
#endif

namespace na {

struct Span {  // half-open interval of positions
  int low;
  int high;
};

NA_FUNC int minimum(int a, int b) { return a < b ? a : b; }
NA_FUNC int maximum(int a, int b) { return a > b ? a : b; }

// p rounded down to the first position of its stride group; a division is expensive on a GPU, and s is usually 1
NA_FUNC int group_start(int p, int s) { return s == 1 ? p : p / s * s; }

NA_FUNC int group_length(int length, int group, int dilation) { return (length - group + dilation - 1) / dilation; }

// [low, high): the key positions that the query at p attends to
NA_FUNC Span window(int p, int n, int w, int s, bool causal) {
  Span span;
  if (causal) {
    int leader = minimum(group_start(p, s) + s - 1, n - 1);
    span.low = maximum(leader - w + 1, 0);
    span.high = p + 1;
    return span;
  }
  int leader = minimum(group_start(p, s) + s / 2, n - 1);
  span.low = maximum(minimum(leader - w / 2, n - w), 0);
  span.high = span.low + w;
  return span;
}

// [low, high): the query positions whose windows hold the key at j; n counts the queries
NA_FUNC Span inverse(int j, int n, int w, int s, bool causal) {
  Span span;
  if (causal) {
    span.low = j;
    span.high = minimum(j + w >= n ? n : group_start(j + w - s, s) + s, n);
    return span;
  }
  int reach = j + w / 2;
  int need = maximum(reach - w + 1 - s / 2, 0);
  int first = j + 1 <= w ? 0 : minimum(group_start(need + s - 1, s), group_start(n - 1, s));
  span.low = first;
  span.high = minimum(j + w >= n ? n : group_start(reach - s / 2, s) + s, n);
  return span;
}

}  // namespace na
