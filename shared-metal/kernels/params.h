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
  kQueryShape = 8,    // 3 entries: query tokens per axis
  kKeyShape = 11,     // 3 entries: key tokens per axis
  kWindow = 14,       // 3 entries: kernel_size
  kStride = 17,       // 3 entries: stride
  kDilation = 20,     // 3 entries: dilation
  kCausal = 23,       // 3 entries: 0 or 1
  kTiles = 26,        // 3 entries: tiles per axis, of the longest dilation group
  kQueryStride = 29,  // stride blocks, 5 entries each
  kKeyStride = 34,
  kValueStride = 39,
  kOutStride = 44,
  kLseStride = 49,    // of lse and delta, or of stats in kernels that read those instead
  kOutGradStride = 54,
  kQueryGradStride = 59,
  kKeyGradStride = 64,
  kValueGradStride = 69,
  kAdditionalKeyStride = 74,    // additional keys and values: batch, head, token, 0, 0
  kAdditionalValueStride = 79,
  kRowCount = 84,     // B * prod(shape) * H
  kKeyGradPart = 85,  // elements between two parts of a partial result
  kValueGradPart = 86,
  kParamCount = 87,   // how many there are
};

}  // namespace na
