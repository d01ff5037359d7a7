"""Illegal key masks, each with the full text of its error."""

from __future__ import annotations

import numpy as np
from bad_calls import TENSOR, Bad, t

# na1d of 7 tokens; na2d of 5 x 6; na3d of 3 x 4 x 5.
MUST = "key_mask must be [batch, *key shape] ="
BAD_MASKS: list[Bad] = [
    ("na1d", {"key_mask": True}, TypeError, f"key_mask must be {TENSOR}; got bool"),
    ("na1d", {"key_mask": np.ones((1, 7), bool)}, TypeError, f"key_mask must be {TENSOR}; got ndarray"),
    ("na1d", {"key_mask": t(1, 7)}, TypeError, "key_mask must be bool; got float32"),
    ("na2d", {"key_mask": t(1, 5, 6, dtype="uint8")}, TypeError, "key_mask must be bool; got uint8"),
    ("na1d", {"key_mask": t(1, 7, dtype="int32"), "wrap": True}, TypeError, "key_mask must be bool; got int32"),
    ("na1d", {"key_mask": t(1, 8, dtype="bool")}, ValueError, f"{MUST} (1, 7); got (1, 8)"),
    ("na1d", {"key_mask": t(2, 7, dtype="bool")}, ValueError, f"{MUST} (1, 7); got (2, 7)"),
    ("na1d", {"key_mask": t(7, dtype="bool"), "wrap": True}, ValueError, f"{MUST} (1, 7); got (7,)"),
    ("na2d", {"key_mask": t(1, 5, 6, 2, dtype="bool")}, ValueError, f"{MUST} (1, 5, 6); got (1, 5, 6, 2)"),
    ("na3d", {"key_mask": t(1, 60, dtype="bool")}, ValueError, f"{MUST} (1, 3, 4, 5); got (1, 60)"),
    (
        "neighborhood_attention",
        {"query": t(1, 10, 12, 2, 4), "key_mask": t(1, 10, 12, dtype="bool")},
        ValueError,
        f"{MUST} (1, 5, 6); got (1, 10, 12)",
    ),
    (
        "na1d",
        {
            "query": t(1, 2, 2, 4),
            "full_shape": 20,
            "query_start": 9,
            "key_start": 7,
            "key_mask": t(1, 20, dtype="bool"),
        },
        ValueError,
        f"{MUST} (1, 7); got (1, 20)",
    ),
    ("explain", {"key_mask": t(1, 7)}, TypeError, "key_mask must be bool; got float32"),
]
