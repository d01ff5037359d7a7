"""The pure backend's split operations: logits of window slots (qk), weights of window slots times values (av).

Slots are row-major over the window; slot j of an axis is the key at ``start + j`` of the group. A tile
computes the whole box and then finds each slot's column in it, or the other way round.
"""

import math

from ..plan.blocks import Chunk
from ..plan.programs import Walks
from .operations import Tensor, compute_dtype
from .walk import Collector, Rows, Step, Steps, Walk, add_bias, rpb_gradient

Optional = Tensor | None


def _at(walk: Walk, values: Tensor, index: Tensor, held: Tensor, groups: int, empty: float) -> Tensor:
    """``values [b, c, kv heads, groups * T, n]`` at ``index [c, T, m]``; ``empty`` where not ``held``."""
    b, c, kv_heads, rows, width = values.shape
    apart = values.reshape(b, c, kv_heads, groups, rows // groups, width)
    found = walk.hide(walk.operations.gather(apart, index[:, None, None]), held[:, None, None], empty)
    return found.reshape(b, c, kv_heads, rows, index.shape[-1])


def _slots_of_box(walk: Walk, box: Tensor, chunk: Chunk, groups: int, empty: float) -> Tensor:
    """``[b, c, kv heads, groups * T, U]`` -> ``[..., W]``; slots at or past the window's end hold ``empty``."""
    column, held = chunk.columns_of_slots()
    return _at(walk, box, column, held, groups, empty)


def _box_of_slots(walk: Walk, slots: Tensor, chunk: Chunk, groups: int) -> Tensor:
    """``[b, c, kv heads, groups * T, W]`` -> ``[..., U]``; 0, whatever a slot holds, outside the window."""
    return _at(walk, slots, chunk.slots(), chunk.mask, groups, 0.0)


def _pair_weights(walk: Walk, slots: Rows, step: Step, groups: int) -> Tensor:
    """Slots of the pairs of a transposed walk: ``[b, c, kv heads, T keys, groups * U queries]``."""
    xp, chunk, row = walk.operations, step.chunk, step.when_due(slots.row_numbers(step, "columns"))
    b, c, heads, columns = row.shape
    index = row[..., None, :] * slots.width + chunk.slots()[:, None]
    found = walk.hide(xp.astype(xp.take(slots.rows.flatten(), index, 0), slots.dtype), chunk.mask[:, None], 0.0)
    rows = index.shape[-2]
    apart = found.reshape(b, c, heads // groups, groups, rows, columns).swapaxes(3, 4)
    return apart.reshape(b, c, heads // groups, rows, groups * columns)


def qk(walk: Walk, program: Walks, query: Tensor, key: Tensor, rpb: Optional = None) -> Tensor:
    """Logits ``[B, *shape, H, W]`` = scale * q.k + rpb in the query's dtype, -inf where a slot has no key."""
    problem, steps = program.problem, Steps(walk, program.queries, query)
    groups = problem.group_heads
    q, k = Rows(walk, query, groups), Rows(walk, key)
    out = Collector(walk, steps.blocks, query, problem.heads, problem.slots, query.dtype)
    for step in steps:
        logits = (q.gather(step, "rows") * problem.scale) @ k.gather(step, "columns").swapaxes(-1, -2)
        if rpb is not None:
            logits = add_bias(walk, logits, step.chunk, rpb, groups)
        out.put(step, _slots_of_box(walk, logits, step.chunk, groups, -math.inf))
    return out.result(problem.query_shape)


def av(walk: Walk, program: Walks, attn: Tensor, value: Tensor) -> Tensor:
    """``[B, *shape, H, D_v]`` in the value's dtype: each query's slots times the values they stand for."""
    return _weigh_keys(walk, program, Steps(walk, program.queries, value), attn, value, 1.0)[0]


def _weigh_keys(
    walk: Walk, program: Walks, steps: Steps, slots: Tensor, keys: Tensor, scale: float, rpb: Optional = None
) -> tuple[Tensor, Optional]:
    """Sum over each query's slots of slot * key row; with ``rpb``, its gradient too."""
    xp, problem = walk.operations, program.problem
    groups = problem.group_heads
    a, k = Rows(walk, slots, groups), Rows(walk, keys)
    out = Collector(walk, steps.blocks, keys, problem.heads, k.width, keys.dtype)
    rpb_grad = None if rpb is None else xp.zeros(rpb.shape, compute_dtype(xp, slots), rpb)
    for step in steps:
        box = _box_of_slots(walk, a.gather(step, "rows"), step.chunk, groups)
        if rpb_grad is not None:
            rpb_grad = rpb_grad + rpb_gradient(xp, box, step.chunk, steps.blocks)
            step.keep(rpb_grad)
        out.put(step, xp.astype(box, k.dtype) @ k.gather(step, "columns") * scale)
    return out.result(problem.query_shape), None if rpb is None or rpb_grad is None else xp.astype(rpb_grad, rpb.dtype)


def _weigh_queries(walk: Walk, program: Walks, after: Steps, slots: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Sum over the queries that see each key of slot * query row: ``[B, *shape, kv heads, D]``."""
    problem, steps = program.problem, Steps(walk, program.keys, rows, after)
    groups = problem.group_heads
    a, q = Rows(walk, slots, groups), Rows(walk, rows, groups)
    out = Collector(walk, steps.blocks, rows, problem.kv_heads, q.width, rows.dtype)
    for step in steps:
        weights = walk.operations.astype(_pair_weights(walk, a, step, groups), q.dtype)
        part = weights @ q.gather(step, "columns") * scale
        if problem.piece is not None:  # the box of a key that no query at hand sees has arbitrary tokens
            part = walk.hide(part, step.chunk.sees[:, None, :, None], 0.0)
        out.put(step, part)
    return out.result(problem.key_shape)


def qk_backward(
    walk: Walk, program: Walks, logits_grad: Tensor, query: Tensor, key: Tensor, rpb: Optional = None
) -> tuple[Tensor, Tensor, Optional]:
    """Gradients of query, key and rpb; what flows into slots without a key is never read."""
    scale, steps = program.problem.scale, Steps(walk, program.queries, key)
    query_grad, rpb_grad = _weigh_keys(walk, program, steps, logits_grad, key, scale, rpb)
    return query_grad, _weigh_queries(walk, program, steps, logits_grad, query, scale), rpb_grad


def av_backward(walk: Walk, program: Walks, out_grad: Tensor, attn: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of attn (0 in slots without a key) and value, each in its own dtype."""
    problem, steps = program.problem, Steps(walk, program.queries, value)
    groups = problem.group_heads
    do, v = Rows(walk, out_grad, groups), Rows(walk, value)
    attn_grad = Collector(walk, steps.blocks, attn, problem.heads, problem.slots, attn.dtype)
    for step in steps:
        box = do.gather(step, "rows") @ v.gather(step, "columns").swapaxes(-1, -2)
        attn_grad.put(step, _slots_of_box(walk, box, step.chunk, groups, 0.0))
    return attn_grad.result(problem.query_shape), _weigh_queries(walk, program, steps, attn, out_grad, 1.0)
