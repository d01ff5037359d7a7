"""The pure path: blocks of queries against the box of keys that they see, in plain torch operations.

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

import torch
from torch import Tensor

from .._metal.plan.blocks import Chunk
from .._metal.plan.programs import Walks
from .walk import Collector, Rows, Sums, bias_gradient, compute_dtype, exp_, mask_logits, steps

Optional = Tensor | None


def _extra(tensor: Optional, items: range, dtype: torch.dtype) -> Optional:
    """Additional keys or values ``[B, S, kv heads, D]`` as ``[b, 1, kv heads, S, D]``."""
    if tensor is None:
        return None
    return tensor[items.start : items.stop].transpose(1, 2)[:, None].to(dtype)


def forward(
    program: Walks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    problem, blocks = program.problem, program.queries
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
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional, Optional]:
    """Gradients of query, key, value, additional_keys, additional_values and rpb, each in its own dtype."""
    dtype = compute_dtype(query)
    delta = (out_grad.to(dtype) * out.to(dtype)).sum(-1)
    if lse_grad is not None:
        delta = delta - lse_grad.to(dtype)
    # Without weights: exp(-inf - inf) is 0.
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    return _walk_back(
        program, query, key, value, additional_keys, additional_values, rpb, out_grad, lse[..., None], delta[..., None]
    )


def _walk_back(
    program: Walks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional,
    additional_values: Optional,
    rpb: Optional,
    d_out: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Optional, Optional, Optional]:
    problem, blocks = program.problem, program.queries
    assert blocks is not None
    groups, dtype = problem.group_heads, compute_dtype(query)
    q, do, ls, de = (Rows(tensor, groups) for tensor in (query, d_out, lse, delta))
    k, v = Rows(key), Rows(value)
    d_query = Collector(blocks, query, problem.heads, problem.head_dim, query.dtype)
    d_key, d_value = Sums(blocks, k), Sums(blocks, v)
    d_keys = None if additional_keys is None else torch.zeros_like(additional_keys, dtype=dtype)
    d_values = None if additional_values is None else torch.zeros_like(additional_values, dtype=dtype)
    d_rpb = None if rpb is None else torch.zeros(rpb.shape, dtype=dtype, device=rpb.device)
    for chunk, items in steps(blocks, problem.batch, query.device):
        rows, d_rows, row_lse, row_delta = (t.gather(chunk, "rows", items) for t in (q, do, ls, de))
        rows = rows * problem.scale
        keys = k.gather(chunk, "columns", items)
        weights = exp_(mask_logits(rows @ keys.transpose(-1, -2), chunk, rpb, groups).sub_(row_lse))
        total = weights.sum(-1, keepdim=True)
        extra_keys = _extra(additional_keys, items, dtype)
        if extra_keys is not None:
            extra_weights = exp_((rows @ extra_keys.transpose(-1, -2)).sub_(row_lse))
            total = total + extra_weights.sum(-1, keepdim=True)
        inverse = _reciprocal(total, chunk, groups)
        d_rows, row_delta = d_rows * inverse, row_delta * inverse
        d_weights = d_rows @ v.gather(chunk, "columns", items).transpose(-1, -2)
        d_logits = d_weights.sub_(row_delta).mul_(weights)
        part = d_logits @ keys
        d_key.add(chunk, items, d_logits.transpose(-1, -2) @ rows)
        d_value.add(chunk, items, weights.transpose(-1, -2) @ d_rows)
        if d_rpb is not None:
            d_rpb += bias_gradient(d_logits, chunk, blocks)
        extra_values = _extra(additional_values, items, dtype)
        if extra_keys is not None and extra_values is not None and d_keys is not None and d_values is not None:
            d_logits = (d_rows @ extra_values.transpose(-1, -2)).sub_(row_delta).mul_(extra_weights)
            part = part + d_logits @ extra_keys
            d_keys[items.start : items.stop] += torch.einsum("bchrs,bchrd->bshd", d_logits, rows)
            d_values[items.start : items.stop] += torch.einsum("bchrs,bchrd->bshd", extra_weights, d_rows)
        d_query.put(chunk, items, part * problem.scale)
    return (
        d_query.result(problem.query_shape),
        d_key.result(problem.key_shape).to(key.dtype),
        d_value.result(problem.key_shape).to(value.dtype),
        None if d_keys is None else d_keys.to(query.dtype),
        None if d_values is None else d_values.to(query.dtype),
        None if rpb is None or d_rpb is None else d_rpb.to(rpb.dtype),
    )


def _reciprocal(total: Tensor, chunk: Chunk, groups: int) -> Tensor:
    """1 / total; 0 for a query without weights, and for rows past the end of a group: they repeat a token."""
    held = chunk.noted(("held", groups), lambda: chunk.held.repeat(1, groups)[:, None, :, None])
    return torch.where(held & (total != 0), total.reciprocal(), 0.0)
