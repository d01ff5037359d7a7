"""The dense path: one masked softmax over all keys, in plain MLX operations.

Quadratic in memory and time, obvious, and differentiable as often as you like, forward and reverse:
indexing is by ``take_along_axis`` and ``put_along_axis``, the gathers that MLX differentiates both ways.

Every query meets every key, if only with a weight of 0, and 0 times NaN is NaN. So numbers that are not finite are
taken out of query, key and value, and what a query sees of them is marked: its result is NaN, no other's is.
Marks are joined by ``logical_or``: under ``mx.vmap``, MLX 0.32 gives ``|`` of a mapped and another array a wrong shape.
"""

import math

import mlx.core as mx

from .._metal.problem.mask import axis_windows, bias_offsets, neighborhood_mask, slot_keys
from .._metal.problem.problem import Problem
from .._metal.problem.window import group_length
from .._tensors import MlxTables, Optional, compute_dtype, exp, fixed_shape


def _heads_first(tensor: mx.array, groups: int = 1) -> mx.array:
    """``[B, *shape, H, D]`` -> ``[B, H * groups, tokens, D]``."""
    batch, *shape, heads, width = tensor.shape
    flat = tensor.reshape(batch, math.prod(shape), heads, width).swapaxes(1, 2)
    return mx.repeat(flat, groups, axis=1) if groups > 1 else flat


def _finite(tensor: mx.array, groups: int = 1) -> mx.array:
    """:func:`_heads_first` in the compute dtype, with 0 in place of what is not finite."""
    # In this order: gradients of the heads are then summed in the compute dtype too.
    flat = _heads_first(tensor.astype(compute_dtype(tensor)), groups)
    return mx.where(mx.isfinite(flat), flat, 0.0)


def _bad_rows(tensor: mx.array, groups: int = 1) -> mx.array:
    """``[B, H * groups, tokens, 1]`` bool: something in the row is not finite."""
    return ~mx.isfinite(_heads_first(tensor, groups)).all(-1, keepdims=True)


def _sees(problem: Problem, bad: mx.array) -> mx.array:
    """``[B, *key_shape, kv heads, C]`` bool -> ``[B, H, queries, C]``: the query's window holds a true one.

    Axis by axis, the count up to the window's end less that up to its start; nothing quadratic.
    """
    if not problem.batch:  # MLX gathers nothing from arrays without elements
        return mx.zeros((0, problem.heads, problem.queries, bad.shape[-1]), mx.bool_)
    for axis, sizes in enumerate(problem.axes):
        d, (group, start, end) = sizes.dilation, axis_windows(sizes, MlxTables())
        tokens = mx.moveaxis(bad, 1 + axis, 0).astype(mx.int32)
        length = group_length(sizes.keys, 0, d)
        padded = mx.pad(tokens, [(0, length * d - sizes.keys), *[(0, 0)] * (tokens.ndim - 1)])
        counts = mx.cumsum(padded.reshape(length, d, *tokens.shape[1:]), axis=0)
        counts = mx.pad(counts, [(1, 0), *[(0, 0)] * tokens.ndim]).reshape((length + 1) * d, *tokens.shape[1:])
        held = mx.take(counts, end * d + group, axis=0) > mx.take(counts, start * d + group, axis=0)
        bad = mx.moveaxis(held, 0, 1 + axis)
    return _heads_first(bad, problem.group_heads)


def _spoilt(result: mx.array, where: mx.array) -> mx.array:
    """``result`` with NaN in some places, through which nothing flows back.

    By a gather: MLX multiplies by the mask where it differentiates ``where``, and a NaN would pass it.
    """
    both = mx.stack([result, mx.full(result.shape, math.nan, result.dtype)], axis=-1)
    chosen = mx.broadcast_to(where, result.shape).astype(mx.int64)[..., None]
    return mx.take_along_axis(both, mx.stop_gradient(chosen), axis=-1)[..., 0]


def _heads_last(tensor: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    batch, heads, _, width = tensor.shape
    return tensor.swapaxes(1, 2).reshape(batch, *shape, heads, width).astype(dtype)


def _logits(problem: Problem, rows: mx.array, key: mx.array, rpb: Optional) -> mx.array:
    """``[B, H, queries, keys]`` before the mask. rows: the queries, finite."""
    logits = problem.scale * (rows @ _finite(key, problem.group_heads).swapaxes(-1, -2))
    if rpb is None:
        return logits
    pairs = problem.queries * problem.keys
    offsets = mx.broadcast_to(bias_offsets(problem, MlxTables()).reshape(1, pairs), (problem.heads, pairs))
    relative = mx.take_along_axis(rpb.astype(logits.dtype).flatten(1), offsets, axis=-1)
    return logits + relative.reshape(problem.heads, problem.queries, problem.keys)


def _slots(problem: Problem) -> mx.array:
    """``[B, H, queries, slots]``: the key of each window slot; where it has none, the column past the keys.

    That column is added and cut off around the indexing, so that nothing flows through an empty slot,
    not even a NaN (MLX multiplies by the mask where it differentiates ``where``).
    """
    keys, held = slot_keys(problem, MlxTables())
    index = mx.where(held, keys, problem.keys)
    return mx.broadcast_to(index, (problem.batch, problem.heads, *index.shape))


def forward(
    problem: Problem,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[mx.array, mx.array]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    groups = problem.group_heads
    mask = neighborhood_mask(problem, MlxTables())
    rows, values = _finite(fixed_shape(query)), _finite(value, groups)
    logits = mx.where(mask, _logits(problem, rows, key, rpb), -math.inf)
    bad_keys = ~mx.isfinite(key).all(-1, keepdims=True)
    seen = _sees(problem, mx.concatenate([~mx.isfinite(value), bad_keys], -1))
    if additional_keys is not None and additional_values is not None:
        extra = rows @ _finite(additional_keys, groups).swapaxes(-1, -2)
        logits = mx.concatenate([logits, problem.scale * extra], -1)
        values = mx.concatenate([values, _finite(additional_values, groups)], 2)
        bad_values = ~mx.isfinite(_heads_first(additional_values, groups))
        more = mx.concatenate([bad_values, _bad_rows(additional_keys, groups)], -1).any(2, keepdims=True)
        seen = mx.logical_or(seen, more)
    top = mx.stop_gradient(logits.max(-1, keepdims=True))
    empty = top == -math.inf
    # A query whose logits are all -inf has no weights; finite numbers stand in, so that no NaN reaches a gradient.
    top = mx.where(empty, 0.0, top)
    weights = exp(logits - top)
    total = mx.where(empty, 1.0, weights.sum(-1, keepdims=True))
    out, lse = (weights / total) @ values, mx.where(empty, -math.inf, top + mx.log(total))
    bad = mx.logical_or(seen[..., -1:], _bad_rows(query))
    out, lse = _spoilt(out, mx.logical_or(seen[..., :-1], bad)), _spoilt(lse, bad)
    shape = problem.query_shape
    return _heads_last(out, shape, query.dtype), _heads_last(lse, shape, lse.dtype)[..., 0]


def softmax(logits: mx.array) -> mx.array:
    """Over the last axis; all 0 where all logits are -inf."""
    empty = mx.stop_gradient(logits.max(-1, keepdims=True) == -math.inf)
    return mx.where(empty, 0.0, mx.softmax(mx.where(empty, 0.0, logits), -1, precise=True))


def qk(problem: Problem, query: mx.array, key: mx.array, rpb: Optional = None) -> mx.array:
    """Logits of the window slots ``[B, *shape, H, W]`` in the query's dtype, -inf where a slot has no key."""
    logits = _logits(problem, _finite(fixed_shape(query)), key, rpb)
    empty = mx.full((*logits.shape[:-1], 1), -math.inf, logits.dtype)
    found = mx.take_along_axis(mx.concatenate([logits, empty], -1), _slots(problem), axis=-1)
    keys, held = slot_keys(problem, MlxTables())
    bad = mx.logical_or(mx.take(_bad_rows(key, problem.group_heads)[..., 0], keys, axis=2), _bad_rows(query))
    found = _spoilt(found, mx.logical_and(bad, held))
    return _heads_last(found, problem.query_shape, query.dtype)


def av(problem: Problem, attn: mx.array, value: mx.array) -> mx.array:
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype."""
    slots = _heads_first(fixed_shape(attn)).astype(compute_dtype(value))
    dense = mx.zeros((*slots.shape[:-1], problem.keys + 1), slots.dtype)
    dense = mx.put_along_axis(dense, _slots(problem), slots, axis=-1)[..., : problem.keys]
    out = dense @ _finite(value, problem.group_heads)
    out = _spoilt(out, _sees(problem, ~mx.isfinite(value)))
    return _heads_last(out, problem.query_shape, value.dtype)
