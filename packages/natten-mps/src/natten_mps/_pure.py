"""The pure path: blocks of queries against the box of keys that they see, in plain torch operations.

For one tile of query rows Q ``[T, D]`` and its box of keys K, V ``[U, D(_v)]``::

    S = scale * Q K^T + bias (-inf where the window does not reach)      P = exp(S - lse), 0 where lse = -inf
    O = P V                 lse = log sum exp S
    dS = P * (dO V^T - delta)        delta = rowsum(dO * O) - dLSE
    dQ = scale * dS K       dK = scale * dS^T Q        dV = P^T dO

dQ walks queries; dK and dV walk keys, whose box is the queries that see them, so nothing is ever
scattered: every result is written once, memory is O(N), and a repeated run is equal to the bit.
Inputs of 16 bits are computed in float32 and rounded once. Source: FlashAttention (arXiv 2205.14135)
for the recomputed backward; :mod:`natten_metal.blocks` for the walk.
"""

import math

import torch
from torch import Tensor

from ._metal.plan import Plan
from ._walk import Collector, Rows, bias_gradient, compute_dtype, exp_, mask_logits, steps

Optional = Tensor | None


def _extra(tensor: Optional, items: range, dtype: torch.dtype) -> Optional:
    """Additional keys or values ``[B, S, kv heads, D]`` as ``[b, 1, kv heads, S, D]``."""
    if tensor is None:
        return None
    return tensor[items.start : items.stop].transpose(1, 2)[:, None].to(dtype)


def forward(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    problem, blocks = plan.problem, plan.queries
    assert blocks is not None
    groups, dtype = problem.group_heads, compute_dtype(query)
    q, k, v = Rows(query, groups), Rows(key), Rows(value)
    out = Collector(blocks, query, problem.heads, problem.head_dim_v, query.dtype)
    lse = Collector(blocks, query, problem.heads, 1, dtype)
    for chunk, items in steps(blocks, problem.batch, query.device):
        rows = q.gather(chunk, "rows", items) * problem.scale
        logits = rows @ k.gather(chunk, "columns", items).transpose(-1, -2)
        mask_logits(logits, chunk, rpb, groups)
        extra_keys = _extra(additional_keys, items, dtype)
        if extra_keys is not None:
            logits = torch.cat([logits, rows @ extra_keys.transpose(-1, -2)], -1)
        top = logits.amax(-1, keepdim=True)
        weights = torch.softmax(logits, -1)
        # The largest weight is exp(top - lse). A query whose logits are all -inf has no weights: the softmax is NaN.
        empty = top == -math.inf
        lse.put(chunk, items, torch.where(empty, top, top - weights.amax(-1, keepdim=True).log()))
        part = weights[..., : blocks.box_columns] @ v.gather(chunk, "columns", items)
        extra_values = _extra(additional_values, items, dtype)
        if extra_values is not None:
            part = part + weights[..., blocks.box_columns :] @ extra_values
        out.put(chunk, items, part.masked_fill_(empty, 0.0))
    return out.result(problem.query_shape), lse.result(problem.query_shape)[..., 0]


def backward(
    plan: Plan,
    d_out: Tensor,
    d_lse: Optional,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional,
    additional_values: Optional,
    rpb: Optional,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional, Optional]:
    """Gradients of query, key, value, additional_keys, additional_values and rpb, each in its own dtype."""
    dtype = compute_dtype(query)
    delta = (d_out.to(dtype) * out.to(dtype)).sum(-1)
    if d_lse is not None:
        delta = delta - d_lse.to(dtype)
    # Without weights: exp(-inf - inf) is 0.
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    rows = (d_out, lse[..., None], delta[..., None])
    d_query, d_keys, d_values, d_rpb = _query_walk(
        plan, query, key, value, additional_keys, additional_values, rpb, *rows
    )
    d_key, d_value = _key_walk(plan, query, key, value, rpb, *rows)
    return d_query, d_key, d_value, d_keys, d_values, d_rpb


def _query_walk(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional,
    additional_values: Optional,
    rpb: Optional,
    d_out: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Optional, Optional, Optional]:
    """dQ, and the gradients that sum over all queries: additional keys and values, rpb."""
    problem, blocks = plan.problem, plan.queries
    assert blocks is not None
    groups, dtype = problem.group_heads, compute_dtype(query)
    q, do, ls, de = (Rows(tensor, groups) for tensor in (query, d_out, lse, delta))
    k, v = Rows(key), Rows(value)
    d_query = Collector(blocks, query, problem.heads, problem.head_dim, query.dtype)
    d_keys = None if additional_keys is None else torch.zeros_like(additional_keys, dtype=dtype)
    d_values = None if additional_values is None else torch.zeros_like(additional_values, dtype=dtype)
    d_rpb = None if rpb is None else torch.zeros(rpb.shape, dtype=dtype, device=rpb.device)
    for chunk, items in steps(blocks, problem.batch, query.device):
        rows, d_rows, row_lse, row_delta = (t.gather(chunk, "rows", items) for t in (q, do, ls, de))
        rows = rows * problem.scale
        keys = k.gather(chunk, "columns", items)
        logits = mask_logits(rows @ keys.transpose(-1, -2), chunk, rpb, groups)
        weights = exp_(logits.sub_(row_lse))
        d_weights = d_rows @ v.gather(chunk, "columns", items).transpose(-1, -2)
        d_logits = d_weights.sub_(row_delta).mul_(weights)
        part = d_logits @ keys
        if d_rpb is not None:
            d_rpb += bias_gradient(d_logits, chunk, blocks)
        extra_keys, extra_values = (
            _extra(additional_keys, items, dtype),
            _extra(additional_values, items, dtype),
        )
        if extra_keys is not None and extra_values is not None and d_keys is not None and d_values is not None:
            weights = exp_((rows @ extra_keys.transpose(-1, -2)).sub_(row_lse))
            # Rows past the end of a group repeat a token: they must not be summed twice.
            weights *= chunk.held.repeat(1, groups)[:, None, :, None]
            d_logits = (d_rows @ extra_values.transpose(-1, -2)).sub_(row_delta).mul_(weights)
            part = part + d_logits @ extra_keys
            d_keys[items.start : items.stop] += torch.einsum("bchrs,bchrd->bshd", d_logits, rows)
            d_values[items.start : items.stop] += torch.einsum("bchrs,bchrd->bshd", weights, d_rows)
        d_query.put(chunk, items, part * problem.scale)
    return (
        d_query.result(problem.query_shape),
        None if d_keys is None else d_keys.to(query.dtype),
        None if d_values is None else d_values.to(query.dtype),
        None if rpb is None or d_rpb is None else d_rpb.to(rpb.dtype),
    )


def _key_walk(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Optional,
    d_out: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor]:
    """dK and dV: tiles of keys against the queries whose windows hold them."""
    problem, blocks = plan.problem, plan.keys
    assert blocks is not None
    groups = problem.group_heads
    q, do, ls, de = (Rows(tensor, groups) for tensor in (query, d_out, lse, delta))
    k, v = Rows(key), Rows(value)
    d_key = Collector(blocks, key, problem.kv_heads, problem.head_dim, key.dtype)
    d_value = Collector(blocks, value, problem.kv_heads, problem.head_dim_v, value.dtype)
    for chunk, items in steps(blocks, problem.batch, query.device):
        columns, d_columns, column_lse, column_delta = (t.gather(chunk, "columns", items) for t in (q, do, ls, de))
        columns = columns * problem.scale
        logits = k.gather(chunk, "rows", items) @ columns.transpose(-1, -2)
        mask_logits(logits, chunk, rpb, groups, transposed=True)
        weights = exp_(logits.sub_(column_lse.transpose(-1, -2)))
        d_value.put(chunk, items, weights @ d_columns)
        d_weights = v.gather(chunk, "rows", items) @ d_columns.transpose(-1, -2)
        d_logits = d_weights.sub_(column_delta.transpose(-1, -2)).mul_(weights)
        d_key.put(chunk, items, d_logits @ columns)
    return d_key.result(problem.key_shape), d_value.result(problem.key_shape)
