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
    "kWindow": (14, 3),
    "kStride": (17, 3),
    "kDilation": (20, 3),
    "kCausal": (23, 3),
    "kTiles": (26, 3),
    "kQueryStride": (29, 5),
    "kKeyStride": (34, 5),
    "kValueStride": (39, 5),
    "kOutStride": (44, 5),
    "kLseStride": (49, 5),
    "kOutGradStride": (54, 5),
    "kQueryGradStride": (59, 5),
    "kKeyGradStride": (64, 5),
    "kValueGradStride": (69, 5),
    "kAdditionalKeyStride": (74, 5),
    "kAdditionalValueStride": (79, 5),
    "kRowCount": (84, 1),
    "kKeyGradPart": (85, 1),
    "kValueGradPart": (86, 1),
}
COUNT = 87
