"""The pure path's split operations: logits of window slots (qk), weights of window slots times values (av).

Slots are row-major over the window; slot j of an axis is the key at ``start + j`` of the group. A tile
computes the whole box and then finds each slot's column in it, or the other way round.
"""

import math

import torch
from torch import Tensor

from .._metal.plan.blocks import Chunk
from .._metal.plan.programs import Walks
from .walk import Collector, Rows, bias_gradient, compute_dtype, steps

Optional = Tensor | None


def _slots_of_box(box: Tensor, chunk: Chunk, groups: int, empty: float) -> Tensor:
    """``[b, c, kv heads, groups * T, U]`` -> ``[..., W]``; slots at or past the window's end hold ``empty``."""
    b, c, kv_heads, rows, columns = box.shape
    column, held = chunk.columns_of_slots()
    view = box.view(b, c, kv_heads, groups, -1, columns)
    index = column[:, None, None].expand(*view.shape[:-1], -1)
    found = view.gather(-1, index).masked_fill_(~held[:, None, None], empty)
    return found.view(b, c, kv_heads, rows, -1)


def _box_of_slots(slots: Tensor, chunk: Chunk, groups: int) -> Tensor:
    """``[b, c, kv heads, groups * T, W]`` -> ``[..., U]``; 0, whatever a slot holds, outside the window."""
    b, c, kv_heads, rows, width = slots.shape
    view = slots.view(b, c, kv_heads, groups, -1, width)
    index = chunk.slots()[:, None, None].expand(*view.shape[:-1], -1)
    found = view.gather(-1, index).masked_fill_(~chunk.mask[:, None, None], 0.0)
    return found.view(b, c, kv_heads, rows, -1)


def _pair_weights(slots: Rows, chunk: Chunk, items: range, groups: int) -> Tensor:
    """Slots of the pairs of a transposed walk: ``[b, c, kv heads, T keys, groups * U queries]``."""
    row = slots.index(chunk, "columns", items)
    b, c, heads, columns = row.shape
    index = row[..., None, :] * slots.width + chunk.slots()[:, None]
    found = slots.rows.view(-1)[index].to(slots.dtype).masked_fill_(~chunk.mask[:, None], 0.0)
    found = found.view(b, c, heads // groups, groups, -1, columns).transpose(3, 4)
    return found.reshape(b, c, heads // groups, -1, groups * columns)


def qk(program: Walks, query: Tensor, key: Tensor, rpb: Optional = None) -> Tensor:
    """Logits ``[B, *shape, H, W]`` = scale * q.k + rpb in the query's dtype, -inf where a slot has no key."""
    problem, blocks = program.problem, program.queries
    assert blocks is not None
    groups = problem.group_heads
    q, k = Rows(query, groups), Rows(key)
    out = Collector(blocks, query, problem.heads, problem.slots, query.dtype)
    for chunk, items in steps(blocks, problem.batch, query.device):
        logits = (q.gather(chunk, "rows", items) * problem.scale) @ k.gather(chunk, "columns", items).transpose(-1, -2)
        if rpb is not None:
            table = rpb.to(logits.dtype).reshape(problem.kv_heads * groups, -1)
            relative = table[:, chunk.offsets().reshape(-1)].view(problem.kv_heads, groups, *chunk.mask.shape)
            logits.view(*logits.shape[:3], groups, -1, blocks.box_columns).add_(relative.permute(2, 0, 1, 3, 4))
        out.put(chunk, items, _slots_of_box(logits, chunk, groups, -math.inf))
    return out.result(problem.query_shape)


def av(program: Walks, attn: Tensor, value: Tensor) -> Tensor:
    """``[B, *shape, H, D_v]`` in the value's dtype: each query's slots times the values they stand for."""
    problem = program.problem
    return _weigh_keys(program, attn, value, 1.0, problem.heads)[0]


def _weigh_keys(
    program: Walks, slots: Tensor, keys: Tensor, scale: float, heads: int, rpb: Optional = None
) -> tuple[Tensor, Optional]:
    """Sum over each query's slots of slot * key row; and, asked for with ``rpb``, its gradient."""
    problem, blocks = program.problem, program.queries
    assert blocks is not None
    groups = problem.group_heads
    a, k = Rows(slots, groups), Rows(keys)
    out = Collector(blocks, keys, heads, k.width, keys.dtype)
    d_rpb = None if rpb is None else torch.zeros(rpb.shape, dtype=compute_dtype(slots), device=rpb.device)
    for chunk, items in steps(blocks, problem.batch, keys.device):
        box = _box_of_slots(a.gather(chunk, "rows", items), chunk, groups)
        if d_rpb is not None:
            d_rpb += bias_gradient(box, chunk, blocks)
        out.put(chunk, items, box.to(k.dtype) @ k.gather(chunk, "columns", items) * scale)
    return out.result(problem.query_shape), None if rpb is None or d_rpb is None else d_rpb.to(rpb.dtype)


def _weigh_queries(program: Walks, slots: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Sum over the queries that see each key of slot * query row: ``[B, *shape, kv heads, D]``."""
    problem, blocks = program.problem, program.keys
    assert blocks is not None
    groups = problem.group_heads
    a, q = Rows(slots, groups), Rows(rows, groups)
    out = Collector(blocks, rows, problem.kv_heads, q.width, rows.dtype)
    for chunk, items in steps(blocks, problem.batch, rows.device):
        weights = _pair_weights(a, chunk, items, groups).to(q.dtype)
        out.put(chunk, items, weights @ q.gather(chunk, "columns", items) * scale)
    return out.result(problem.key_shape)


def qk_backward(
    program: Walks, logits_grad: Tensor, query: Tensor, key: Tensor, rpb: Optional = None
) -> tuple[Tensor, Tensor, Optional]:
    """Gradients of query, key and rpb; what flows into slots without a key is not read."""
    problem = program.problem
    d_query, d_rpb = _weigh_keys(program, logits_grad, key, problem.scale, problem.heads, rpb)
    return d_query, _weigh_queries(program, logits_grad, query, problem.scale), d_rpb


def av_backward(program: Walks, out_grad: Tensor, attn: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of attn (0 in slots without a key) and value, each in its own dtype."""
    problem, blocks = program.problem, program.queries
    assert blocks is not None
    groups = problem.group_heads
    do, v = Rows(out_grad, groups), Rows(value)
    d_attn = Collector(blocks, attn, problem.heads, problem.slots, attn.dtype)
    for chunk, items in steps(blocks, problem.batch, value.device):
        box = do.gather(chunk, "rows", items) @ v.gather(chunk, "columns", items).transpose(-1, -2)
        d_attn.put(chunk, items, _slots_of_box(box, chunk, groups, 0.0))
    return d_attn.result(problem.query_shape), _weigh_queries(program, attn, out_grad, 1.0)
