// A team: two simdgroups of a threadgroup that share one patch, because alone each would run out of registers.
//
// The gradients need two products of every brick that are alike, S = rows . A and dP = other rows . B, and then sums over
// channels. The even member holds the rows of S, the odd one those of dP. Each makes its product of a group of bricks;
// both show it to the other on a board in threadgroup memory, and then add up their own share of the sums' channels:
//
//                    na_bwd_dkv                       na_bwd_dq
//     even member    S  | barrier | sums of dV        S  | barrier | dQ, the first half of its channels
//     odd member     dP | barrier | sums of dK        dP | barrier | dQ, the second half
//
// No product is made twice, and every sum has the terms and the order that it has in one simdgroup. The board has two
// sides, used in turn, so that one barrier for each group is enough: whoever writes to a side has passed a barrier that
// the other reached after it had read that side. A team is a whole threadgroup, because both must take the same bricks.
#pragma once

namespace na {

template <typename C>
struct Team {
  threadgroup float* board;  // [2 sides][S, dP][NB bricks][64]
  int turn;                  // the side to write to
  bool odd;

  METAL_FUNC void join(int member, threadgroup float* memory) thread {
    board = memory;
    turn = 0;
    odd = member != 0;
  }

  // Whether this simdgroup writes what both know
  METAL_FUNC bool leads() const thread { return C::TEAM == 1 || !odd; }
  // First channel of the member's share, if each has one of `channels`
  METAL_FUNC int first(int channels) const thread { return C::TEAM != 1 && odd ? channels : 0; }

  // What the member multiplies its rows with. Sources of different types belong to no team.
  template <typename Side>
  METAL_FUNC Side side(Side of_even, Side of_odd) const thread { return odd ? of_odd : of_even; }
  template <typename A, typename B>
  METAL_FUNC A side(A of_even, B of_odd) const thread { return of_even; }

  // S and dP of a group of bricks. row: the member's rows; at, source: of the side that they are multiplied with
  template <int DP, typename T, typename At, typename Source>
  METAL_FUNC void multiply(thread Pair<float>* s, thread Pair<float>* dp, const thread Pair<T>* row, const thread At* at,
                           const thread int* last, int count, const thread Source& source, int fr, int fc) thread {
    Pair<float> own[C::NB];
    NA_UNROLL for (int j = 0; j < C::NB; ++j) own[j] = Pair<float>(0.0f);
    multiply_across<T, DP, C::NB>(own, row, at, last, count, source, fr, fc);
    threadgroup float* shown = board + turn * (2 * C::NB * 64) + fr * 8 + fc;
    threadgroup float* to = shown + (odd ? C::NB * 64 : 0);
    NA_UNROLL for (int j = 0; j < C::NB; ++j) *(threadgroup Pair<float>*)(to + j * 64) = own[j];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    NA_UNROLL for (int j = 0; j < C::NB; ++j) {
      s[j] = *(const threadgroup Pair<float>*)(shown + j * 64);
      dp[j] = *(const threadgroup Pair<float>*)(shown + (C::NB + j) * 64);
    }
    turn = 1 - turn;
  }
};

}  // namespace na
