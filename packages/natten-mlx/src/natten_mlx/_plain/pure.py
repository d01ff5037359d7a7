"""The pure path: blocks of queries against the box of keys that they see, in plain MLX operations.

For one tile of query rows Q ``[T, D]`` and its box of keys K, V ``[U, D(_v)]``::

    S = scale * Q K^T + bias (-inf where the window does not reach)      P = exp(S - lse), 0 where lse = -inf
    O = P V                 lse = log sum exp S
    dS = P * (dO V^T - delta)        delta = rowsum(dO * O) - dLSE
    dQ = scale * dS K       dK = scale * dS^T Q        dV = P^T dO

The backward walks the same tiles as the forward and multiplies the same matrices, so that its logits are the forward's
to the bit, however large; and lse, which is rounded, only scales: weights are divided by their own sum L again. That
is done to the rows of dO and to delta, which are small::

    W = exp(S - lse)     L = rowsum W     dO' = dO / L     delta' = delta / L
    dS = W * (dO' V^T - delta')      dV = W^T dO'

dQ is written once; parts of dK and dV are added in turns (:mod:`natten_metal.plan.turns`). Memory is O(N), and a
repeated run is equal to the bit. Inputs of 16 bits are computed in float32 and rounded once. Source: FlashAttention
(arXiv 2205.14135) for the recomputed backward; :mod:`natten_metal.plan.blocks` for the walk.
"""

import math

import mlx.core as mx

from .._metal.plan.programs import Walks
from .._tensors import Optional, compute_dtype, exp
from .walk import Collector, Rows, Step, Sums, Walk, bias_gradient, mask_logits


def _extra(tensor: Optional, items: range, dtype: mx.Dtype) -> Optional:
    """Additional keys or values ``[B, S, kv heads, D]`` as ``[b, 1, kv heads, S, D]``."""
    if tensor is None:
        return None
    return tensor[items.start : items.stop].swapaxes(1, 2)[:, None].astype(dtype)


def forward(
    program: Walks,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[mx.array, mx.array]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    problem, walk = program.problem, Walk(program.queries, program.problem.batch)
    groups, dtype, columns = problem.group_heads, compute_dtype(query), walk.blocks.box_columns
    q, k, v = Rows(query, groups), Rows(key), Rows(value)
    out = Collector(walk.blocks, problem.batch, problem.heads, problem.head_dim_v, query.dtype)
    lse = Collector(walk.blocks, problem.batch, problem.heads, 1, dtype)
    for step in walk:
        rows = q.gather(step, "rows") * problem.scale
        logits = rows @ k.gather(step, "columns").swapaxes(-1, -2)
        logits = mask_logits(logits, step.chunk, rpb, groups)
        extra_keys = _extra(additional_keys, step.items, dtype)
        if extra_keys is not None:
            logits = mx.concatenate([logits, rows @ extra_keys.swapaxes(-1, -2)], -1)
        top = logits.max(-1, keepdims=True)
        weights = exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        # A query whose logits are all -inf has no weights: they are NaN.
        empty = top == -math.inf
        lse.put(step, mx.where(empty, top, top + mx.log(total)))
        part = weights[..., :columns] @ v.gather(step, "columns")
        extra_values = _extra(additional_values, step.items, dtype)
        if extra_values is not None:
            part = part + weights[..., columns:] @ extra_values
        out.put(step, mx.where(empty, 0.0, part / total))
    return out.result(problem.query_shape), lse.result(problem.query_shape)[..., 0]


def backward(
    program: Walks,
    out_grad: mx.array,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    out: mx.array,
    lse: mx.array,
    lse_grad: Optional = None,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[mx.array, mx.array, mx.array, Optional, Optional, Optional]:
    """Gradients of query, key, value, additional_keys, additional_values and rpb, each in its own dtype."""
    dtype = compute_dtype(query)
    delta = (out_grad.astype(dtype) * out.astype(dtype)).sum(-1)
    if lse_grad is not None:
        delta = delta - lse_grad.astype(dtype)
    # Without weights: exp(-inf - inf) is 0.
    lse = mx.where(lse == -math.inf, math.inf, lse)
    return _walk_back(
        program, query, key, value, additional_keys, additional_values, rpb, out_grad, lse[..., None], delta[..., None]
    )


def _walk_back(
    program: Walks,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    additional_keys: Optional,
    additional_values: Optional,
    rpb: Optional,
    d_out: mx.array,
    lse: mx.array,
    delta: mx.array,
) -> tuple[mx.array, mx.array, mx.array, Optional, Optional, Optional]:
    problem, walk = program.problem, Walk(program.queries, program.problem.batch)
    groups, dtype = problem.group_heads, compute_dtype(query)
    q, do, ls, de = (Rows(tensor, groups) for tensor in (query, d_out, lse, delta))
    k, v = Rows(key), Rows(value)
    d_query = Collector(walk.blocks, problem.batch, problem.heads, problem.head_dim, query.dtype)
    d_key, d_value = Sums(walk.blocks, k), Sums(walk.blocks, v)
    d_keys = None if additional_keys is None else mx.zeros(additional_keys.shape, dtype)
    d_values = None if additional_values is None else mx.zeros(additional_values.shape, dtype)
    d_rpb = None if rpb is None else mx.zeros(rpb.shape, dtype)
    for step in walk:
        rows, d_rows, row_lse, row_delta = (t.gather(step, "rows") for t in (q, do, ls, de))
        rows = rows * problem.scale
        keys = k.gather(step, "columns")
        logits = mask_logits(rows @ keys.swapaxes(-1, -2), step.chunk, rpb, groups)
        weights = exp(logits - row_lse)
        total = weights.sum(-1, keepdims=True)
        extra_keys = _extra(additional_keys, step.items, dtype)
        if extra_keys is not None:
            extra_weights = exp(rows @ extra_keys.swapaxes(-1, -2) - row_lse)
            total = total + extra_weights.sum(-1, keepdims=True)
        inverse = _reciprocal(total, step, groups)
        d_rows, row_delta = d_rows * inverse, row_delta * inverse
        d_weights = d_rows @ v.gather(step, "columns").swapaxes(-1, -2)
        d_logits = (d_weights - row_delta) * weights
        part = d_logits @ keys
        d_key.add(step, d_logits.swapaxes(-1, -2) @ rows)
        d_value.add(step, weights.swapaxes(-1, -2) @ d_rows)
        if d_rpb is not None:
            d_rpb = d_rpb + bias_gradient(d_logits, step.chunk, walk.blocks)
            step.parts.append(d_rpb)
        extra_values = _extra(additional_values, step.items, dtype)
        if extra_keys is not None and extra_values is not None and d_keys is not None and d_values is not None:
            d_logits = (d_rows @ extra_values.swapaxes(-1, -2) - row_delta) * extra_weights
            part = part + d_logits @ extra_keys
            own = slice(step.items.start, step.items.stop)
            d_keys[own] = d_keys[own] + mx.einsum("bchrs,bchrd->bshd", d_logits, rows)
            d_values[own] = d_values[own] + mx.einsum("bchrs,bchrd->bshd", extra_weights, d_rows)
            step.parts.extend((d_keys, d_values))
        d_query.put(step, part * problem.scale)
    return (
        d_query.result(problem.query_shape),
        d_key.result(problem.key_shape).astype(key.dtype),
        d_value.result(problem.key_shape).astype(value.dtype),
        None if d_keys is None else d_keys.astype(query.dtype),
        None if d_values is None else d_values.astype(query.dtype),
        None if rpb is None or d_rpb is None else d_rpb.astype(rpb.dtype),
    )


def _reciprocal(total: mx.array, step: Step, groups: int) -> mx.array:
    """1 / total; 0 for a query without weights, and for rows past the end of a group: they repeat a token."""
    held = mx.concatenate([step.chunk.held] * groups, 1)[:, None, :, None]
    return mx.where(held & (total != 0), 1 / total, 0.0)
