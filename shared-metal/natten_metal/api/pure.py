"""The pure backend: blocks of queries against the box of keys that they see, in plain operations.

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
from typing import Any

from ..plan.programs import Walks
from .dense import masked
from .operations import Dtype, Operations, Tensor, compute_dtype
from .walk import Collector, Rows, Steps, Sums, Walk, mask_logits, reciprocal, rpb_gradient

Optional = Tensor | None


def _additional(xp: Operations, tensor: Optional, items: range, dtype: Dtype) -> Optional:
    """Additional keys or values ``[B, S, kv heads, D]`` as ``[b, 1, kv heads, S, D]``."""
    if tensor is None:
        return None
    return xp.astype(tensor[items.start : items.stop].swapaxes(1, 2)[:, None], dtype)


def _masked(walk: Walk, key: Tensor, value: Tensor, key_mask: Optional) -> tuple[Tensor, Tensor, Rows | None]:
    """Keys and values with 0 at masked keys, and the mask as rows, if there is one."""
    if key_mask is None:
        return key, value, None
    xp = walk.operations
    return masked(xp, key, key_mask), masked(xp, value, key_mask), Rows(walk, key_mask[..., None, None])


def forward(
    walk: Walk,
    program: Walks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
    key_mask: Optional = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    xp, problem, steps = walk.operations, program.problem, Steps(walk, program.queries, query)
    blocks, groups, dtype = steps.blocks, problem.group_heads, compute_dtype(xp, query)
    key, value, seen = _masked(walk, key, value, key_mask)
    q, k, v = Rows(walk, query, groups), Rows(walk, key), Rows(walk, value)
    out = Collector(walk, blocks, query, problem.heads, problem.head_dim_v, query.dtype)
    lse = Collector(walk, blocks, query, problem.heads, 1, dtype)
    for step in steps:
        rows = q.gather(step, "rows") * problem.scale
        logits = rows @ k.gather(step, "columns").swapaxes(-1, -2)
        logits = mask_logits(walk, logits, step, rpb, groups, seen)
        more_keys = _additional(xp, additional_keys, step.items, dtype)
        if more_keys is not None:
            logits = xp.concatenate([logits, rows @ more_keys.swapaxes(-1, -2)], -1)
        weights, own_lse, output = walk.softmax(logits)
        lse.put(step, own_lse)
        part = weights[..., : blocks.box_columns] @ v.gather(step, "columns")
        more_values = _additional(xp, additional_values, step.items, dtype)
        if more_values is not None:
            part = part + weights[..., blocks.box_columns :] @ more_values
        out.put(step, output(part))
    return out.result(problem.query_shape), lse.result(problem.query_shape)[..., 0]


def backward(
    walk: Walk,
    program: Walks,
    out_grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    lse_grad: Optional = None,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
    key_mask: Optional = None,
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional, Optional]:
    """Gradients of query, key, value, additional_keys, additional_values and rpb, each in its own dtype."""
    xp = walk.operations
    dtype = compute_dtype(xp, query)
    delta = (xp.astype(out_grad, dtype) * xp.astype(out, dtype)).sum(-1)
    if lse_grad is not None:
        delta = delta - xp.astype(lse_grad, dtype)
    # A query without weights: exp(-inf - inf) is 0.
    lse = xp.where(lse == -math.inf, math.inf, lse)
    rows = out_grad, lse[..., None], delta[..., None]
    key, value, seen = _masked(walk, key, value, key_mask)
    found = _walk_back(walk, program, query, key, value, additional_keys, additional_values, rpb, seen, *rows)
    if key_mask is None:
        return found
    # Not even a query that is NaN reaches the gradient of a masked key.
    key_grad, value_grad = (masked(xp, gradient, key_mask) for gradient in found[1:3])
    return found[0], key_grad, value_grad, *found[3:]


def _walk_back(
    walk: Walk,
    program: Walks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional,
    additional_values: Optional,
    rpb: Optional,
    seen: Rows | None,
    out_grad: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional, Optional]:
    xp, problem, steps = walk.operations, program.problem, Steps(walk, program.queries, query)
    blocks, groups, dtype = steps.blocks, problem.group_heads, compute_dtype(xp, query)
    q, do, ls, de = (Rows(walk, tensor, groups) for tensor in (query, out_grad, lse, delta))
    k, v = Rows(walk, key), Rows(walk, value)
    query_grad = Collector(walk, blocks, query, problem.heads, problem.head_dim, query.dtype)
    key_grad, value_grad = Sums(walk, blocks, k), Sums(walk, blocks, v)
    d_keys, d_values, rpb_grad = (
        None if tensor is None else xp.zeros(tensor.shape, dtype, tensor)
        for tensor in (additional_keys, additional_values, rpb)
    )
    for step in steps:
        rows, d_rows, row_lse, row_delta = (t.gather(step, "rows") for t in (q, do, ls, de))
        rows = rows * problem.scale
        keys = k.gather(step, "columns")
        logits = mask_logits(walk, rows @ keys.swapaxes(-1, -2), step, rpb, groups, seen)
        weights = walk.exponentials(logits, row_lse)
        total = weights.sum(-1, keepdims=True)
        more_keys = _additional(xp, additional_keys, step.items, dtype)
        if more_keys is not None:
            more_weights = walk.exponentials(rows @ more_keys.swapaxes(-1, -2), row_lse)
            total = total + more_weights.sum(-1, keepdims=True)
        inverse = reciprocal(walk, total, step.chunk, groups)
        d_rows, row_delta = d_rows * inverse, row_delta * inverse
        d_weights = d_rows @ v.gather(step, "columns").swapaxes(-1, -2)
        logits_grad = walk.gradient_of_logits(d_weights, row_delta, weights)
        part = logits_grad @ keys
        key_grad.add(step, logits_grad.swapaxes(-1, -2) @ rows)
        value_grad.add(step, weights.swapaxes(-1, -2) @ d_rows)
        if rpb_grad is not None:
            rpb_grad = rpb_grad + rpb_gradient(xp, logits_grad, step.chunk, blocks)
            step.keep(rpb_grad)
        more_values = _additional(xp, additional_values, step.items, dtype)
        if more_keys is not None and more_values is not None and d_keys is not None and d_values is not None:
            logits_grad = walk.gradient_of_logits(d_rows @ more_values.swapaxes(-1, -2), row_delta, more_weights)
            part = part + logits_grad @ more_keys
            own = slice(step.items.start, step.items.stop)
            d_keys[own] = d_keys[own] + xp.einsum("bchrs,bchrd->bshd", logits_grad, rows)
            d_values[own] = d_values[own] + xp.einsum("bchrs,bchrd->bshd", more_weights, d_rows)
            step.keep(d_keys, d_values)
        query_grad.put(step, part * problem.scale)
    found = (
        query_grad.result(problem.query_shape),
        key_grad.result(problem.key_shape),
        value_grad.result(problem.key_shape),
    )
    return _in_own_dtypes(xp, (*found, d_keys, d_values, rpb_grad), (query, key, value, query, query, rpb))


def _in_own_dtypes(xp: Operations, gradients: tuple[Optional, ...], like: tuple[Optional, ...]) -> Any:
    return tuple(
        None if gradient is None or tensor is None else xp.astype(gradient, tensor.dtype)
        for gradient, tensor in zip(gradients, like, strict=True)
    )
