// What the backward needs for each query row:  delta[i] = sum_c dO[i,c] * O[i,c] - dLSE[i]      (float)
//
//   dO, O [B, *shape, H, D_v]   dLSE, delta [B, *shape, H]          8 lanes a row, 16 rows a threadgroup
//   grid of threadgroups: (ceil(rows / 16), 1, 1) with rows = B * prod(shape) * H; 128 threads a threadgroup
//
// O, delta and dLSE are rows of contiguous tensors; dO has strides of its own (params.h). Lanes sum channels in a
// fixed order, so the result does not depend on the schedule. Finding a row takes longer than reading a few of its
// channels, which is why a row has 8 lanes and not all 32.
// Source: FlashAttention (arXiv 2205.14135); the dLSE term is d lse / d logits = P.
#pragma once

namespace na {

// Element offset of flat row `at` of [B, *shape, H] in the tensor of a stride block; I can hold every row number
template <typename I>
METAL_FUNC long row_offset(const thread Params& prm, int block, int rank, I at) {
  long offset = long(at % I(prm[kHeads])) * prm[block + 1];
  at /= I(prm[kHeads]);
  for (int a = rank - 1; a >= 0; --a) {
    offset += long(at % I(prm[kQueryShape + a])) * prm[block + 2 + a];
    at /= I(prm[kQueryShape + a]);
  }
  return offset + long(at) * prm[block];
}

template <typename C>
METAL_FUNC void na_delta(const device typename C::T* out_grad, const device typename C::T* out,
                         const device float* lse_grad, const thread Params& prm, device float* delta, uint3 tgid,
                         uint sg, uint lane) {
  const long own = long(tgid.x) * 16 + long(sg) * 4 + long(lane / 8);
  const long row = min(own, prm[kRowCount] - 1);  // lanes without a row repeat the last: every lane must shuffle
  const bool few = prm[kRowCount] >> 32 == 0;  // 64-bit divisions are expensive
  const long grad_at = few ? row_offset<uint>(prm, kOutGradStride, C::RANK, uint(row))
                           : row_offset<ulong>(prm, kOutGradStride, C::RANK, ulong(row));
  const device typename C::T* grad_row = out_grad + grad_at;
  const device typename C::T* out_row = out + row * prm[kDimV];
  const long channel = prm.channel(kOutGradStride);
  float sum = 0.0f;
  for (int c = int(lane % 8); c < int(prm[kDimV]); c += 8) sum += float(grad_row[c * channel]) * float(out_row[c]);
  sum += simd_shuffle_xor(sum, ushort(1));
  sum += simd_shuffle_xor(sum, ushort(2));
  sum += simd_shuffle_xor(sum, ushort(4));
  if (lane % 8 == 0 && own == row) delta[row] = sum - (C::LSE_GRAD ? lse_grad[row] : 0.0f);
}

}  // namespace na
