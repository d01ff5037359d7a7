// Sums over the columns of a walk.
//
// A float sum of n terms, added one by one, accumulates about sqrt(n) rounding errors, and n of them if the terms are
// equal: a million terms of 0.1 are off by a percent. If PART is not 0, a sum is taken in parts of PART bricks, and the
// parts are added, so that both sums are short. The total is touched once per part; it costs registers (or, where
// those run out, a little memory) and some time. The planner sets PART where sums are long (op_launches.py).
// There is no compensated summation, because fast math would optimise it away.
#pragma once

namespace na {

// Counts bricks up to the end of a part
template <int PART>
struct Parts {
  int bricks;
  METAL_FUNC bool end(int count) thread {
    bricks += count;
    if (PART == 0 || bricks < PART) return false;
    bricks = 0;
    return true;
  }
};

// N pairs of sums. Terms are added to `part`, which holds the whole sum after `finish`.
template <int N, int PART>
struct Sums {
  Pair<float> part[N];
  Pair<float> total[PART == 0 ? 1 : N];
  METAL_FUNC void clear() thread {
    NA_UNROLL for (int n = 0; n < N; ++n) part[n] = Pair<float>(0.0f);
    if (PART != 0) NA_UNROLL for (int n = 0; n < N; ++n) total[n] = Pair<float>(0.0f);
  }
  // decay: the factor by which the terms of earlier parts have shrunk since
  METAL_FUNC void end_part(float decay) thread {
    if (PART != 0) {
      NA_UNROLL for (int n = 0; n < N; ++n) {
        total[n] = total[n] * decay + part[n];
        part[n] = Pair<float>(0.0f);
      }
    }
  }
  METAL_FUNC void finish(float decay) thread {
    if (PART != 0) NA_UNROLL for (int n = 0; n < N; ++n) part[n] += total[n] * decay;
  }
};

}  // namespace na
