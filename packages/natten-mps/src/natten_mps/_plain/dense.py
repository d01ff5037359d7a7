"""The dense path: one masked softmax over all keys, in plain torch operations.

Quadratic in memory and time, obvious, and differentiable as often as you like, forward and reverse.

Every query meets every key, if only with a weight of 0, and 0 times NaN is NaN. So numbers that are not finite are
taken out of query, key and value, and what a query sees of them is marked: its result is NaN, no other's is.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._metal.problem.mask import axis_windows, bias_offsets, neighborhood_mask, slot_keys
from .._metal.problem.problem import Problem
from .._metal.problem.window import group_length
from .._tensors import TorchTables
from .walk import compute_dtype

Optional = Tensor | None


def _heads_first(tensor: Tensor, groups: int = 1) -> Tensor:
    """``[B, *shape, H, D]`` -> ``[B, H * groups, tokens, D]``."""
    flat = tensor.flatten(1, -3).transpose(1, 2)
    return flat.repeat_interleave(groups, 1) if groups > 1 else flat


def _finite(tensor: Tensor, groups: int = 1) -> Tensor:
    """:func:`_heads_first` in the compute dtype, with 0 in place of what is not finite."""
    # In this order: gradients of the heads are then summed in the compute dtype too.
    flat = _heads_first(tensor.to(compute_dtype(tensor)), groups)
    return torch.where(torch.isfinite(flat), flat, 0.0)


def _bad_rows(tensor: Tensor, groups: int = 1) -> Tensor:
    """``[B, H * groups, tokens, 1]`` bool: something in the row is not finite."""
    return ~torch.isfinite(_heads_first(tensor, groups)).all(-1, keepdim=True)


def _sees(problem: Problem, bad: Tensor) -> Tensor:
    """``[B, *key_shape, kv heads, C]`` bool -> ``[B, H, queries, C]``: the query's window holds a true one.

    Axis by axis, the count up to the window's end less that up to its start; nothing quadratic.
    """
    tables = TorchTables(bad.device)
    for axis, sizes in enumerate(problem.axes):
        d, (group, start, end) = sizes.dilation, axis_windows(sizes, tables)
        last = bad.dim() - 1  # in so many words: ONNX's exporter of traced graphs moves no axis to -1
        tokens = bad.movedim(1 + axis, last).to(torch.int32)
        length = group_length(sizes.keys, 0, d)
        padded = pad(tokens, (0, length * d - sizes.keys))
        counts = padded.unflatten(-1, (length, d)).cumsum(-2, dtype=torch.int32)
        counts = pad(counts, (0, 0, 1, 0)).flatten(-2)
        held = counts.index_select(-1, end * d + group) > counts.index_select(-1, start * d + group)
        bad = held.movedim(last, 1 + axis)
    return _heads_first(bad, problem.group_heads)


def _spoilt(result: Tensor, where: Tensor) -> Tensor:
    """``result`` with NaN in some places, through which nothing flows back."""
    return result.masked_fill(where, math.nan)


def _heads_last(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return tensor.transpose(1, 2).to(dtype).contiguous().unflatten(1, shape)


def _logits(problem: Problem, rows: Tensor, key: Tensor, rpb: Optional) -> Tensor:
    """``[B, H, queries, keys]`` before the mask. rows: the queries, finite."""
    logits = problem.scale * (rows @ _finite(key, problem.group_heads).transpose(-1, -2))
    if rpb is None:
        return logits
    return logits + rpb.to(logits.dtype).flatten(1)[:, bias_offsets(problem, TorchTables(rows.device))]


def forward(
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    groups = problem.group_heads
    mask = neighborhood_mask(problem, TorchTables(query.device))
    rows, values = _finite(query), _finite(value, groups)
    logits = _logits(problem, rows, key, rpb).masked_fill(~mask, -math.inf)
    bad_keys = ~torch.isfinite(key).all(-1, keepdim=True)
    seen = _sees(problem, torch.cat([~torch.isfinite(value), bad_keys], -1))
    if additional_keys is not None and additional_values is not None:
        extra = rows @ _finite(additional_keys, groups).transpose(-1, -2)
        logits = torch.cat([logits, problem.scale * extra], -1)
        values = torch.cat([values, _finite(additional_values, groups)], 2)
        bad_values = ~torch.isfinite(_heads_first(additional_values, groups))
        seen = seen | torch.cat([bad_values, _bad_rows(additional_keys, groups)], -1).any(2, keepdim=True)
    empty = logits.amax(-1, keepdim=True) == -math.inf
    # A query whose logits are all -inf has no weights; zeros stand in, so that no NaN reaches a gradient.
    logits = logits.masked_fill(empty, 0.0)
    # Not logsumexp: its gradient is made of its own, rounded result, and off by as much as lse is.
    top = logits.detach().amax(-1, keepdim=True)
    weights = (logits - top).exp()
    total = weights.sum(-1, keepdim=True)
    out = (weights / total @ values).masked_fill(empty, 0.0)
    lse = (top + total.log()).masked_fill(empty, -math.inf)
    bad = seen[..., -1:] | _bad_rows(query)
    out, lse = _spoilt(out, seen[..., :-1] | bad), _spoilt(lse, bad)
    shape = problem.query_shape
    return _heads_last(out, shape, query.dtype), _heads_last(lse, shape, lse.dtype)[..., 0]


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis; all 0 where all logits are -inf."""
    empty = logits.amax(-1, keepdim=True) == -math.inf
    return torch.softmax(logits.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)


def qk(problem: Problem, query: Tensor, key: Tensor, rpb: Optional = None) -> Tensor:
    """Logits of the window slots ``[B, *shape, H, W]`` in the query's dtype, -inf where a slot has no key."""
    keys, held = slot_keys(problem, TorchTables(query.device))
    logits = _logits(problem, _finite(query), key, rpb)
    found = logits.gather(-1, keys.expand(logits.size(0), logits.size(1), -1, -1))
    bad = _bad_rows(key, problem.group_heads)[:, :, keys, 0] | _bad_rows(query)
    found = _spoilt(found, bad)
    return _heads_last(found.masked_fill(~held, -math.inf), problem.query_shape, query.dtype)


def av(problem: Problem, attn: Tensor, value: Tensor) -> Tensor:
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype."""
    keys, held = slot_keys(problem, TorchTables(value.device))
    slots = _heads_first(attn.to(compute_dtype(value))).masked_fill(~held, 0.0)
    none = pad(slots[..., :0], (0, problem.keys))
    dense = none.scatter_add(-1, keys.expand_as(slots), slots)
    out = dense @ _finite(value, problem.group_heads)
    out = _spoilt(out, _sees(problem, ~torch.isfinite(value)))
    return _heads_last(out, problem.query_shape, value.dtype)
