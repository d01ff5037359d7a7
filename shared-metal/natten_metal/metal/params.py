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
    "kQueryStride": (38, 5),
    "kKeyStride": (43, 5),
    "kValueStride": (48, 5),
    "kOutStride": (53, 5),
    "kLseStride": (58, 5),
    "kOutGradStride": (63, 5),
    "kQueryGradStride": (68, 5),
    "kKeyGradStride": (73, 5),
    "kValueGradStride": (78, 5),
    "kAdditionalKeyStride": (83, 5),
    "kAdditionalValueStride": (88, 5),
    "kRowCount": (93, 1),
    "kKeyGradPart": (94, 1),
    "kValueGradPart": (95, 1),
}
COUNT = 96
