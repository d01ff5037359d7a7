"""The dense path: one masked softmax over all keys, in plain torch operations.

Quadratic in memory and time, obvious, and differentiable as often as you like, forward and reverse.
"""

import math

import torch
from torch import Tensor

from ._arrays import TorchTables
from ._metal.mask import bias_offsets, neighborhood_mask, slot_keys
from ._metal.problem import Problem
from ._walk import compute_dtype

Optional = Tensor | None


def _heads_first(tensor: Tensor, groups: int = 1) -> Tensor:
    """``[B, *shape, H, D]`` -> ``[B, H * groups, tokens, D]`` in the compute dtype."""
    flat = tensor.flatten(1, -3).transpose(1, 2).to(compute_dtype(tensor))
    return flat.repeat_interleave(groups, 1) if groups > 1 else flat


def _heads_last(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return tensor.transpose(1, 2).unflatten(1, shape).to(dtype)


def _logits(problem: Problem, query: Tensor, key: Tensor, rpb: Optional) -> Tensor:
    """``[B, H, queries, keys]`` before the mask."""
    logits = problem.scale * (_heads_first(query) @ _heads_first(key, problem.group_heads).transpose(-1, -2))
    if rpb is None:
        return logits
    return logits + rpb.to(logits.dtype).flatten(1)[:, bias_offsets(problem, TorchTables(query.device))]


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
    logits = _logits(problem, query, key, rpb).masked_fill(~mask, -math.inf)
    values = _heads_first(value, groups)
    if additional_keys is not None and additional_values is not None:
        extra = _heads_first(query) @ _heads_first(additional_keys[:, :, :], groups).transpose(-1, -2)
        logits = torch.cat([logits, problem.scale * extra], -1)
        values = torch.cat([values, _heads_first(additional_values, groups)], 2)
    out = torch.softmax(logits, -1) @ values
    lse = torch.logsumexp(logits, -1, keepdim=True)
    shape = problem.query_shape
    return _heads_last(out, shape, query.dtype), _heads_last(lse, shape, lse.dtype)[..., 0]


def qk(problem: Problem, query: Tensor, key: Tensor, rpb: Optional = None) -> Tensor:
    """Logits of the window slots ``[B, *shape, H, W]`` in the query's dtype, -inf where a slot has no key."""
    keys, held = slot_keys(problem, TorchTables(query.device))
    logits = _logits(problem, query, key, rpb)
    found = logits.gather(-1, keys.expand(*logits.shape[:2], -1, -1))
    return _heads_last(found.masked_fill(~held, -math.inf), problem.query_shape, query.dtype)


def av(problem: Problem, attn: Tensor, value: Tensor) -> Tensor:
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype."""
    keys, held = slot_keys(problem, TorchTables(value.device))
    slots = _heads_first(attn).to(compute_dtype(value)).masked_fill(~held, 0.0)
    dense = slots.new_zeros(*slots.shape[:3], problem.keys).scatter_add(
        -1, keys.expand(*slots.shape[:2], -1, -1), slots
    )
    return _heads_last(dense @ _heads_first(value, problem.group_heads), problem.query_shape, value.dtype)
