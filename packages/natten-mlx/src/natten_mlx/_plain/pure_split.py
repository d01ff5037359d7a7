"""The pure path's split operations: logits of window slots (qk), weights of window slots times values (av).

Slots are row-major over the window; slot j of an axis is the key at ``start + j`` of the group. A tile
computes the whole box and then finds each slot's column in it, or the other way round.
"""

import math

import mlx.core as mx

from .._metal.plan.blocks import Chunk
from .._metal.plan.programs import Walks
from .._metal.problem.problem import Problem
from .._tensors import Optional, compute_dtype
from .walk import Collector, Rows, Step, Walk, bias_gradient, relative_bias


def _found(values: mx.array, index: mx.array, held: mx.array, groups: int, empty: float) -> mx.array:
    """``values [b, c, kv heads, groups * T, n]`` at ``index [c, T, m]``; ``empty`` where not ``held``."""
    b, c, kv_heads, rows, width = values.shape
    lead = (b, c, kv_heads, groups, rows // groups)
    spread = mx.broadcast_to(index[:, None, None], (*lead, index.shape[-1]))
    found = mx.take_along_axis(values.reshape(*lead, width), spread, axis=-1)
    return mx.where(held[:, None, None], found, empty).reshape(b, c, kv_heads, rows, index.shape[-1])


def _slots_of_box(box: mx.array, chunk: Chunk, groups: int, empty: float) -> mx.array:
    """``[b, c, kv heads, groups * T, U]`` -> ``[..., W]``; slots at or past the window's end hold ``empty``."""
    column, held = chunk.columns_of_slots()
    return _found(box, column, held, groups, empty)


def _box_of_slots(slots: mx.array, chunk: Chunk, groups: int) -> mx.array:
    """``[b, c, kv heads, groups * T, W]`` -> ``[..., U]``; 0, whatever a slot holds, outside the window."""
    return _found(slots, chunk.slots(), chunk.mask, groups, 0.0)


def _pair_weights(slots: Rows, step: Step, groups: int) -> mx.array:
    """Slots of the pairs of a transposed walk: ``[b, c, kv heads, T keys, groups * U queries]``."""
    chunk = step.chunk
    row = slots.index(step, "columns")
    b, c, heads, columns = row.shape
    index = row[..., None, :] * slots.width + chunk.slots()[:, None]
    found = mx.take(slots.rows.flatten(), index, axis=0).astype(slots.dtype)
    found = mx.where(chunk.mask[:, None], found, 0.0)
    rows = index.shape[-2]
    found = found.reshape(b, c, heads // groups, groups, rows, columns).swapaxes(3, 4)
    return found.reshape(b, c, heads // groups, rows, groups * columns)


def qk(program: Walks, query: mx.array, key: mx.array, rpb: Optional = None) -> mx.array:
    """Logits ``[B, *shape, H, W]`` = scale * q.k + rpb in the query's dtype, -inf where a slot has no key."""
    problem, walk = program.problem, Walk(program.queries, program.problem.batch)
    groups = problem.group_heads
    q, k = Rows(query, groups), Rows(key)
    out = Collector(walk.blocks, problem.batch, problem.heads, problem.slots, query.dtype)
    for step in walk:
        logits = (q.gather(step, "rows") * problem.scale) @ k.gather(step, "columns").swapaxes(-1, -2)
        if rpb is not None:
            relative = relative_bias(step.chunk, rpb.astype(logits.dtype), problem.kv_heads, groups)
            logits = logits + relative.reshape(1, *logits.shape[1:])
        out.put(step, _slots_of_box(logits, step.chunk, groups, -math.inf))
    return out.result(problem.query_shape)


def av(program: Walks, attn: mx.array, value: mx.array) -> mx.array:
    """``[B, *shape, H, D_v]`` in the value's dtype: each query's slots times the values they stand for."""
    return _weigh_keys(program.problem, Walk(program.queries, program.problem.batch), attn, value, 1.0)[0]


def _weigh_keys(
    problem: Problem, walk: Walk, slots: mx.array, keys: mx.array, scale: float, rpb: Optional = None
) -> tuple[mx.array, Optional]:
    """Sum over each query's slots of slot * key row; and, asked for with ``rpb``, its gradient."""
    groups = problem.group_heads
    a, k = Rows(slots, groups), Rows(keys)
    out = Collector(walk.blocks, problem.batch, problem.heads, k.width, keys.dtype)
    d_rpb = None if rpb is None else mx.zeros(rpb.shape, compute_dtype(slots))
    for step in walk:
        box = _box_of_slots(a.gather(step, "rows"), step.chunk, groups)
        if d_rpb is not None:
            d_rpb = d_rpb + bias_gradient(box, step.chunk, walk.blocks)
            step.parts.append(d_rpb)
        out.put(step, box.astype(k.dtype) @ k.gather(step, "columns") * scale)
    return out.result(problem.query_shape), None if rpb is None or d_rpb is None else d_rpb.astype(rpb.dtype)


def _weigh_queries(problem: Problem, walk: Walk, slots: mx.array, rows: mx.array, scale: float) -> mx.array:
    """Sum over the queries that see each key of slot * query row: ``[B, *shape, kv heads, D]``."""
    groups = problem.group_heads
    a, q = Rows(slots, groups), Rows(rows, groups)
    out = Collector(walk.blocks, problem.batch, problem.kv_heads, q.width, rows.dtype)
    for step in walk:
        weights = _pair_weights(a, step, groups).astype(q.dtype)
        out.put(step, weights @ q.gather(step, "columns") * scale)
    return out.result(problem.key_shape)


def qk_backward(
    program: Walks, logits_grad: mx.array, query: mx.array, key: mx.array, rpb: Optional = None
) -> tuple[mx.array, mx.array, Optional]:
    """Gradients of query, key and rpb; what flows into slots without a key is not read."""
    problem, queries = program.problem, Walk(program.queries, program.problem.batch)
    keys = Walk(program.keys, problem.batch, after=queries)
    d_query, d_rpb = _weigh_keys(problem, queries, logits_grad, key, problem.scale, rpb)
    return d_query, _weigh_queries(problem, keys, logits_grad, query, problem.scale), d_rpb


def av_backward(program: Walks, out_grad: mx.array, attn: mx.array, value: mx.array) -> tuple[mx.array, mx.array]:
    """Gradients of attn (0 in slots without a key) and value, each in its own dtype."""
    problem, walk = program.problem, Walk(program.queries, program.problem.batch)
    keys = Walk(program.keys, problem.batch, after=walk)
    groups = problem.group_heads
    do, v = Rows(out_grad, groups), Rows(value)
    d_attn = Collector(walk.blocks, problem.batch, problem.heads, problem.slots, attn.dtype)
    for step in walk:
        box = do.gather(step, "rows") @ v.gather(step, "columns").swapaxes(-1, -2)
        d_attn.put(step, _slots_of_box(box, step.chunk, groups, 0.0))
    return d_attn.result(problem.query_shape), _weigh_queries(problem, keys, attn, out_grad, 1.0)
