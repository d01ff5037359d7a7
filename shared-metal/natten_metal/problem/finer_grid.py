"""Queries on a finer grid than the keys: they become more query heads on the keys' grid.

With ``ratio`` queries per key along each axis, the query at ``ratio * p + offset`` sees the window of the key at p.
So all queries of one key cell see the same keys, as the query heads of one key/value head do::

    query [B, X * r, Y * s, H, D]   ->   [B, X, Y, H * r * s, D]       head h * r * s + i * s + j: offset (i, j)
"""

import math
from dataclasses import replace

from .problem import TensorSpec

Ratio = tuple[int, ...]


def ratio_of(query: TensorSpec, key: TensorSpec) -> Ratio | None:
    """Queries per key on each axis; None if the grids are the same, or the finer one is not a multiple of the other."""
    queries, keys = query.shape[1:-2], key.shape[1:-2]
    if queries == keys or len(queries) != len(keys) or len(query.shape) < 4:
        return None
    if any(k == 0 or q == 0 or q % k for q, k in zip(queries, keys, strict=True)):
        return None
    return tuple(q // k for q, k in zip(queries, keys, strict=True))


def query_spec(query: TensorSpec, ratio: Ratio) -> TensorSpec:
    """The spec of the queries as heads on the keys' grid."""
    batch, *fine, heads, dim = query.shape
    keys = (length // r for length, r in zip(fine, ratio, strict=True))
    return replace(query, shape=(batch, *keys, heads * math.prod(ratio), dim))


def rpb_spec(rpb: TensorSpec | None, ratio: Ratio) -> TensorSpec | None:
    """The spec of rpb for these heads."""
    if rpb is None or not rpb.shape:
        return rpb
    return replace(rpb, shape=(rpb.shape[0] * math.prod(ratio), *rpb.shape[1:]))
