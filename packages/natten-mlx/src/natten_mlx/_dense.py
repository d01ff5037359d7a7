"""The dense path: one masked softmax over all keys, in plain MLX operations.

Quadratic in memory and time, obvious, and differentiable as often as you like, forward and reverse:
indexing is by ``take_along_axis`` and ``put_along_axis``, the gathers that MLX differentiates both ways.
"""

import math

import mlx.core as mx

from ._arrays import MlxTables, Optional, compute_dtype, exp, fixed_shape
from ._metal.mask import bias_offsets, neighborhood_mask, slot_keys
from ._metal.problem import Problem


def _heads_first(tensor: mx.array, groups: int = 1) -> mx.array:
    """``[B, *shape, H, D]`` -> ``[B, H * groups, tokens, D]`` in the compute dtype."""
    batch, *shape, heads, width = tensor.shape
    flat = tensor.reshape(batch, math.prod(shape), heads, width).swapaxes(1, 2).astype(compute_dtype(tensor))
    return mx.repeat(flat, groups, axis=1) if groups > 1 else flat


def _heads_last(tensor: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    batch, heads, _, width = tensor.shape
    return tensor.swapaxes(1, 2).reshape(batch, *shape, heads, width).astype(dtype)


def _logits(problem: Problem, query: mx.array, key: mx.array, rpb: Optional) -> mx.array:
    """``[B, H, queries, keys]`` before the mask."""
    query = _heads_first(fixed_shape(query))
    logits = problem.scale * (query @ _heads_first(key, problem.group_heads).swapaxes(-1, -2))
    if rpb is None:
        return logits
    pairs = problem.queries * problem.keys
    offsets = mx.broadcast_to(bias_offsets(problem, MlxTables()).reshape(1, pairs), (problem.heads, pairs))
    relative = mx.take_along_axis(rpb.astype(logits.dtype).reshape(problem.heads, -1), offsets, axis=-1)
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
    logits = mx.where(mask, _logits(problem, query, key, rpb), -math.inf)
    values = _heads_first(value, groups)
    if additional_keys is not None and additional_values is not None:
        extra = _heads_first(query) @ _heads_first(additional_keys, groups).swapaxes(-1, -2)
        logits = mx.concatenate([logits, problem.scale * extra], -1)
        values = mx.concatenate([values, _heads_first(additional_values, groups)], 2)
    top = mx.stop_gradient(logits.max(-1, keepdims=True))
    weights = exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    out, lse = (weights / total) @ values, top + mx.log(total)
    shape = problem.query_shape
    return _heads_last(out, shape, query.dtype), _heads_last(lse, shape, lse.dtype)[..., 0]


def qk(problem: Problem, query: mx.array, key: mx.array, rpb: Optional = None) -> mx.array:
    """Logits of the window slots ``[B, *shape, H, W]`` in the query's dtype, -inf where a slot has no key."""
    logits = _logits(problem, query, key, rpb)
    empty = mx.full((*logits.shape[:-1], 1), -math.inf, logits.dtype)
    found = mx.take_along_axis(mx.concatenate([logits, empty], -1), _slots(problem), axis=-1)
    return _heads_last(found, problem.query_shape, query.dtype)


def av(problem: Problem, attn: mx.array, value: mx.array) -> mx.array:
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype."""
    slots = _heads_first(fixed_shape(attn))
    dense = mx.zeros((*slots.shape[:-1], problem.keys + 1), slots.dtype)
    dense = mx.put_along_axis(dense, _slots(problem), slots, axis=-1)[..., : problem.keys]
    return _heads_last(dense @ _heads_first(value, problem.group_heads), problem.query_shape, value.dtype)
