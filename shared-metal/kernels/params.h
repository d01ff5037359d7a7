// Run-time parameters of one launch: a single array of 64-bit integers, read by index.
//
// Everything that changes with the problem is here; everything that changes the code is a template argument (the
// config struct that source.py generates). Blocks of 3 hold one value per axis, outermost first. A stride block
// holds 5 element strides: batch, head, axis 0, axis 1, axis 2. Outputs are contiguous; an input's channels lie
// Params::channel(block) elements apart, a constant 1 where the host guarantees it.
// natten_metal/metal/params.py keeps the same names in the same order, and a test compares the two.
//
// Kernels read them through Params, which the host's adapter defines before this header's users (source.py): hosts
// that know the tensors' strides write them into the array; MLX knows them only inside the kernel.
#pragma once

namespace na {

enum Param : int {
  kHeads = 0,         // query heads H
  kGroupHeads = 1,    // query heads per key/value head, H / H_kv
  kDim = 2,           // D <= DA; channels D..DA-1 are zero padding
  kDimV = 3,          // D_v <= DB
  kScaleBits = 4,     // float bits of scale * log2(e)
  kAdditional = 5,    // additional keys S, which are the rows where OF_ADDITIONAL is set
  kParts = 6,         // parts that share one result and are summed in order afterwards
  kBatch = 7,         // batch items B
  kQueryShape = 8,    // 3 entries: query tokens at hand per axis
  kKeyShape = 11,     // 3 entries: key tokens at hand per axis
  kFullShape = 14,    // 3 entries: tokens of the whole problem per axis
  kQueryStart = 17,   // 3 entries: where in the whole problem the queries at hand begin, in tokens
  kKeyStart = 20,     // 3 entries: where the keys at hand begin
  kWindow = 23,       // 3 entries: kernel_size
  kStride = 26,       // 3 entries: stride
  kDilation = 29,     // 3 entries: dilation
  kCausal = 32,       // 3 entries: 0 or 1
  kTiles = 35,        // 3 entries: tiles per axis, of the longest dilation group
  kRowCount = 38,     // B * prod(shape) * H
  kQueryStride = 39,  // stride blocks, 5 entries each
  kKeyStride = 44,
  kValueStride = 49,
  kOutStride = 54,
  kLseStride = 59,    // of lse and delta, or of stats in kernels that read those instead
  kOutGradStride = 64,
  kQueryGradStride = 69,
  kKeyGradStride = 74,
  kValueGradStride = 79,
  kAdditionalKeyStride = 84,    // additional keys and values: batch, head, token, 0, 0
  kAdditionalValueStride = 89,
  kKeyGradPart = 94,  // elements between two parts of a partial result
  kValueGradPart = 95,
  kParamCount = 96,   // how many there are
};

}  // namespace na
