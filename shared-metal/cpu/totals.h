// Sums over any number of columns, in levels that each add few numbers, so that errors do not grow with the count.
//
//   products   a block's columns, up to 64        in registers                     micro.h
//   sums       a stretch of up to 32 blocks       of the kernel's own type         one row of a patch after another
//   totals     the stretches                      double                           likewise
//
// n numbers added one by one are off by up to n / 2 roundings of their sum, too much for a float from some ten
// thousand on. A patch that sees no more than a stretch of columns never touches its totals.
// Source: Higham, Accuracy and Stability of Numerical Algorithms, 4.2 (sums by blocks).
#pragma once

#include "micro.h"

namespace natten {
namespace NATTEN_ISA {

constexpr int kStretch = 32;

// The sums of a patch, `pitch` numbers for each of its rows, and the totals of earlier stretches
template <typename C>
struct Totals {
  typedef typename C::T T;
  T* sums;
  double* totals;
  int64_t pitch;
  bool used = false;

  void begin() {
    used = false;
    memset(sums, 0, sizeof(*sums) * C::N * pitch);
  }

  // Moves the sums of a stretch into the totals. factors: what the totals of a row are multiplied by first, or NULL
  void end_stretch(const double* factors) {
    for (int lane = 0; lane < C::N; ++lane) {
      const double factor = factors ? factors[lane] : 1;
      T* const sum = sums + lane * pitch;
      double* const total = totals + lane * pitch;
      for (int64_t d = 0; d < pitch; ++d) {
        total[d] = used ? total[d] * factor + double(sum[d]) : double(sum[d]);
        sum[d] = T(0);
      }
    }
    used = true;
  }

  // Afterwards `sums` holds the whole sum. Call it when no stretch is open, or before any has ended.
  void fold() {
    if (!used) return;
    for (int64_t at = 0; at < C::N * pitch; ++at) sums[at] = T(totals[at]);
  }
};

// A number for each row, left uninitialised
template <typename C, typename Number>
struct PerLane {
  Number of[C::N];
  PerLane() {}
};

// Counts the blocks of a patch
struct Stretches {
  int blocks = 0;

  bool end() { return ++blocks % kStretch == 0; }
  bool several() const { return blocks >= kStretch; }
};

}  // namespace NATTEN_ISA
}  // namespace natten
