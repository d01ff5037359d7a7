"""Illegal pieces of a problem, and illegal ranges, each with the full text of its error."""

from __future__ import annotations

from typing import Any

from bad_calls import Bad, t

LEGAL: dict[str, dict[str, Any]] = {
    name: {"full_shape": (5, 6), "kernel_size": 3, "stride": 1, "dilation": 1, "is_causal": False}
    | {given: ((1, 2), (0, 6))}
    for name, given in (("key_range", "query_range"), ("query_range", "key_range"))
}
# na1d of 7 queries and keys; na2d of 5 x 6.
MUST = "must be an int or a sequence of"
NEED = "query_start and key_start need full_shape, the size of the whole problem;"
NEEDED = "every key that a query attends to must be given; on axis"
BAD_PIECES: list[Bad] = [
    ("na1d", {"full_shape": "9"}, TypeError, f"full_shape {MUST} 1 ints; got '9'"),
    ("na2d", {"full_shape": (9, 9.0)}, TypeError, f"full_shape {MUST} 2 ints; got (9, 9.0)"),
    ("na2d_qk", {"full_shape": 9, "query_start": True}, TypeError, f"query_start {MUST} 2 ints; got True"),
    ("na1d_av", {"full_shape": 9, "key_start": None}, TypeError, f"key_start {MUST} 1 ints; got None"),
    ("na1d", {"query_start": False}, TypeError, f"query_start {MUST} 1 ints; got False"),
    ("na1d", {"key_start": 0.0}, TypeError, f"key_start {MUST} 1 ints; got 0.0"),
    ("na2d", {"full_shape": (9,)}, ValueError, "full_shape must have one entry per axis (2); got (9,)"),
    (
        "na2d",
        {"full_shape": (5, 9), "key_start": (0, 1, 2)},
        ValueError,
        "key_start must have one entry per axis (2); got (0, 1, 2)",
    ),
    (
        "na1d",
        {"query_start": 3},
        ValueError,
        f"{NEED} got query_start (3,) without it",
    ),
    (
        "na2d_av",
        {"key_start": (0, -1)},
        ValueError,
        f"{NEED} got key_start (0, -1) without it",
    ),
    (
        "na1d",
        {"full_shape": 9, "query_start": -1},
        ValueError,
        "query_start must not be negative; axis 0 has -1",
    ),
    (
        "na2d_qk",
        {"full_shape": (5, 9), "key_start": (0, -2)},
        ValueError,
        "key_start must not be negative; axis 1 has -2",
    ),
    (
        "na1d",
        {"full_shape": 9, "query_start": 3},
        ValueError,
        "query_start + query length must not exceed full_shape; axis 0 has 3 + 7 = 10 > 9",
    ),
    (
        "na2d_av",
        {"full_shape": (5, 9), "key_start": (0, 4)},
        ValueError,
        "key_start + key length must not exceed full_shape; axis 1 has 4 + 6 = 10 > 9",
    ),
    (
        "na1d",
        {"full_shape": 6},
        ValueError,
        "query_start + query length must not exceed full_shape; axis 0 has 0 + 7 = 7 > 6",
    ),
    (
        "na1d",
        {"full_shape": 20, "kernel_size": 7, "dilation": 3},
        ValueError,
        "kernel_size * dilation must not exceed the axis length; axis 0 has 7 * 3 = 21 > 20",
    ),
    (
        "na1d",
        {"full_shape": 20, "query_start": 8, "key_start": 8},
        ValueError,
        f"{NEEDED} 0, queries 8..14 of 20 attend to keys 7..15; got keys 8..14",
    ),
    (
        "na2d_qk",
        {"full_shape": (5, 20), "query_start": (0, 2), "key_start": (0, 3), "dilation": (1, 2)},
        ValueError,
        f"{NEEDED} 1, queries 2..7 of 20 attend to keys 0..9; got keys 3..8",
    ),
    (
        "na1d_av",
        {"full_shape": 20, "query_start": 8, "key_start": 8, "is_causal": True},
        ValueError,
        f"{NEEDED} 0, queries 8..14 of 20 attend to keys 6..14; got keys 8..14",
    ),
    (
        "na2d",
        {"full_shape": (5, 9), "value": t(1, 5, 7, 2, 4)},
        ValueError,
        "key and value must share one shape; got (5, 6) and (5, 7)",
    ),
    (
        "na1d_av",
        {"full_shape": 20, "value": t(1, 0, 2, 4)},
        ValueError,
        "value shape must not be zero; got (0,)",
    ),
    ("key_range", {"full_shape": ()}, ValueError, "full_shape must have 1, 2 or 3 axes; got ()"),
    ("key_range", {"full_shape": (5, 6, 7, 8)}, ValueError, "full_shape must have 1, 2 or 3 axes; got (5, 6, 7, 8)"),
    ("query_range", {"full_shape": None}, TypeError, f"full_shape {MUST} 1 ints; got None"),
    ("query_range", {"kernel_size": 3.0}, TypeError, f"kernel_size {MUST} 2 ints; got 3.0"),
    ("key_range", {"stride": 4}, ValueError, "stride must not exceed kernel_size; axis 0 has 4 > 3"),
    (
        "key_range",
        {"dilation": (1, 3)},
        ValueError,
        "kernel_size * dilation must not exceed the axis length; axis 1 has 3 * 3 = 9 > 6",
    ),
    (
        "key_range",
        {"query_range": 3},
        TypeError,
        "query_range must be a sequence of 2 pairs (low, high) of ints; got 3",
    ),
    (
        "key_range",
        {"query_range": (1, 2)},
        TypeError,
        "query_range must be a sequence of 2 pairs (low, high) of ints; got (1, 2)",
    ),
    (
        "query_range",
        {"key_range": ((1, 2), (0, True))},
        TypeError,
        "key_range must be a sequence of 2 pairs (low, high) of ints; got ((1, 2), (0, True))",
    ),
    (
        "query_range",
        {"key_range": ((1, 2), (0, 7))},
        ValueError,
        "key_range must lie within its axis, 0 <= low <= high <= length; axis 1 has (0, 7) and length 6",
    ),
    (
        "key_range",
        {"query_range": ((3, 2), (0, 6))},
        ValueError,
        "query_range must lie within its axis, 0 <= low <= high <= length; axis 0 has (3, 2) and length 5",
    ),
]
