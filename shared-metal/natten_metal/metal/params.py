"""The kernels' parameter array, by name, as ``kernels/params.h`` has them.

A stride block of a tensor ``[B, *shape, H(, D)]`` holds five entries: batch, head, then the axes.
"""

# Name -> (first entry, how many).
PARAMS = {
    "kHeads": (0, 1),
    "kGroupHeads": (1, 1),
    "kDim": (2, 1),
    "kDimV": (3, 1),
    "kScaleBits": (4, 1),
    "kAdditional": (5, 1),
    "kParts": (6, 1),
    "kBatch": (7, 1),
    "kQueryShape": (8, 3),
    "kKeyShape": (11, 3),
    "kFullShape": (14, 3),
    "kQueryStart": (17, 3),
    "kKeyStart": (20, 3),
    "kWindow": (23, 3),
    "kStride": (26, 3),
    "kDilation": (29, 3),
    "kCausal": (32, 3),
    "kTiles": (35, 3),
    "kRowCount": (38, 1),
    "kQueryStride": (39, 5),
    "kKeyStride": (44, 5),
    "kValueStride": (49, 5),
    "kOutStride": (54, 5),
    "kLseStride": (59, 5),
    "kOutGradStride": (64, 5),
    "kQueryGradStride": (69, 5),
    "kKeyGradStride": (74, 5),
    "kValueGradStride": (79, 5),
    "kAdditionalKeyStride": (84, 5),
    "kAdditionalValueStride": (89, 5),
    "kKeyGradPart": (94, 1),
    "kValueGradPart": (95, 1),
}
COUNT = 96
