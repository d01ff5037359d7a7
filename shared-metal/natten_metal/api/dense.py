"""The dense backend: one masked softmax over all keys, in a framework's plain operations.

Quadratic in memory and time, obvious, and differentiable as often as you like, forward and reverse.

Masked keys are multiplied with a weight of 0, but 0 times NaN is NaN. So non-finite numbers in query, key and value are
replaced by 0, and the queries that see one are marked: only their results become NaN.
"""

import math
from typing import Any

from ..plan.programs import DenseOperations
from ..problem.mask import axis_windows, bias_offsets, neighborhood_mask, slot_keys
from ..problem.problem import Problem
from ..problem.window import group_length
from .operations import Dtype, Operations, Tensor, Tensors, compute_dtype, largest, pad

Optional = Tensor | None


def _heads_first(xp: Operations, tensor: Tensor, groups: int = 1) -> Tensor:
    """``[B, *shape, H, D]`` -> ``[B, H * groups, tokens, D]``."""
    flat = tensor.flatten(1, -3).swapaxes(1, 2)
    return xp.repeat_heads(flat, groups) if groups > 1 else flat


def _heads_last(xp: Operations, tensor: Tensor, shape: tuple[int, ...], dtype: Dtype) -> Tensor:
    return xp.unflatten(xp.contiguous(xp.astype(tensor.swapaxes(1, 2), dtype)), 1, shape)


def _finite(xp: Operations, tensor: Tensor, groups: int = 1) -> Tensor:
    """:func:`_heads_first` in the compute dtype, with 0 for non-finite numbers."""
    # Convert first: gradients of repeated heads are then summed in the compute dtype too.
    flat = _heads_first(xp, xp.astype(tensor, compute_dtype(xp, tensor)), groups)
    return xp.where(xp.isfinite(flat), flat, 0.0)


def _bad_rows(xp: Operations, tensor: Tensor, groups: int = 1) -> Tensor:
    """``[B, H * groups, tokens, 1]`` bool: something in the row is not finite."""
    return ~xp.isfinite(_heads_first(xp, tensor, groups)).all(-1, keepdims=True)


def _sees(xp: Operations, problem: Problem, bad: Tensor) -> Tensor:
    """``[B, *key_shape, kv heads, C]`` bool -> ``[B, H, queries, C]``: something in the query's window is true.

    Axis by axis, the count up to the window's end minus the count up to its start; nothing quadratic.
    """
    for axis, sizes in enumerate(problem.axes):
        d, (group, start, end) = sizes.dilation, axis_windows(sizes, xp.tables(xp.device(bad)))
        length = group_length(sizes.keys, 0, d)
        start, end = (position * d + group - sizes.key_start for position in (start, end))
        tokens = pad(xp, xp.astype(xp.moveaxis(bad, 1 + axis, 0), xp.int32), {0: (0, length * d - sizes.keys)})
        counts = pad(xp, xp.unflatten(tokens, 0, (length, d)).cumsum(0), {0: (1, 0)}).flatten(0, 1)
        held = xp.take(counts, end, 0) > xp.take(counts, start, 0)
        bad = xp.moveaxis(held, 0, 1 + axis)
    return _heads_first(xp, bad, problem.group_heads)


def masked(xp: Operations, tensor: Tensor, key_mask: Tensor) -> Tensor:
    """``[B, *key_shape, H_kv, D]`` with 0 at masked keys, whatever was there."""
    return xp.where(key_mask[..., None, None], tensor, 0.0)


def _logits(xp: Operations, problem: Problem, rows: Tensor, key: Tensor, rpb: Optional) -> Tensor:
    """``[B, H, queries, keys]`` before the mask. rows: the queries, finite."""
    logits = problem.scale * (rows @ _finite(xp, key, problem.group_heads).swapaxes(-1, -2))
    if rpb is None:
        return logits
    biases = xp.astype(rpb, logits.dtype).flatten(1)
    offsets = bias_offsets(problem, xp.tables(xp.device(rows)))
    return logits + xp.unflatten(xp.gather(biases, offsets.flatten()), 1, tuple(offsets.shape))


def forward(
    xp: Operations,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additional_keys: Optional = None,
    additional_values: Optional = None,
    rpb: Optional = None,
    key_mask: Optional = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[B, *shape, H, D_v]`` in the query's dtype and lse ``[B, *shape, H]`` (float32, or float64)."""
    groups = problem.group_heads
    mask = neighborhood_mask(problem, xp.tables(xp.device(query)))
    if key_mask is not None:
        key, value = masked(xp, key, key_mask), masked(xp, value, key_mask)
        mask = ~xp.either(~mask, ~key_mask.flatten(1)[:, None, None])
    rows, values = _finite(xp, xp.fixed_shape(query)), _finite(xp, value, groups)
    logits = xp.where(mask, _logits(xp, problem, rows, key, rpb), -math.inf)
    bad_keys = ~xp.isfinite(key).all(-1, keepdims=True)
    seen = _sees(xp, problem, xp.concatenate([~xp.isfinite(value), bad_keys], -1))
    if additional_keys is not None and additional_values is not None:
        more = rows @ _finite(xp, additional_keys, groups).swapaxes(-1, -2)
        logits = xp.concatenate([logits, problem.scale * more], -1)
        values = xp.concatenate([values, _finite(xp, additional_values, groups)], 2)
        bad_values = ~xp.isfinite(_heads_first(xp, additional_values, groups))
        marks = xp.concatenate([bad_values, _bad_rows(xp, additional_keys, groups)], -1)
        seen = xp.either(seen, marks.any(2, keepdims=True))
    # Not the framework's logsumexp: its gradient is computed from its rounded result, and is off by as much as lse is.
    top = largest(xp, logits, -1, True)
    empty = top == -math.inf
    # A query whose logits are all -inf has no weights; finite numbers replace them, so that no NaN reaches a gradient.
    top = xp.where(empty, 0.0, top)
    weights = xp.exp(logits - top)
    total = xp.where(empty, 1.0, weights.sum(-1, keepdims=True))
    out, lse = (weights / total) @ values, xp.where(empty, -math.inf, top + xp.log(total))
    bad = _bad_rows(xp, query)
    if key_mask is not None and not problem.additional:  # a query that sees no key gives 0, even if it is NaN itself
        bad = ~xp.either(~bad, ~mask.any(-1, keepdims=True))
    bad = xp.either(seen[..., -1:], bad)
    out, lse = xp.spoil(out, xp.either(seen[..., :-1], bad)), xp.spoil(lse, bad)
    shape = problem.query_shape
    return _heads_last(xp, out, shape, query.dtype), _heads_last(xp, lse, shape, lse.dtype)[..., 0]


def softmax(xp: Operations, logits: Tensor) -> Tensor:
    """Over the last axis; all 0 where all logits are -inf."""
    empty = largest(xp, logits, -1, True) == -math.inf
    return xp.where(empty, 0.0, xp.softmax(xp.where(empty, 0.0, logits)))


def _slots(xp: Operations, problem: Problem, like: Tensor) -> tuple[Tensor, Tensor]:
    """``[queries, slots]``: the key of each window slot, and whether it has one.

    Where it has none, the key is the column after the last. That column is added before the indexing or cut off after
    it, so that nothing flows through an empty slot, not even a NaN.
    """
    keys, held = slot_keys(problem, xp.tables(xp.device(like)))
    return xp.where(held, keys, problem.keys), held


def qk(xp: Operations, problem: Problem, query: Tensor, key: Tensor, rpb: Optional = None) -> Tensor:
    """Logits of the window slots ``[B, *shape, H, W]`` in the query's dtype, -inf where a slot has no key."""
    logits = _logits(xp, problem, _finite(xp, xp.fixed_shape(query)), key, rpb)
    index, held = _slots(xp, problem, query)
    found = xp.gather(pad(xp, logits, {-1: (0, 1)}, -math.inf), index)
    bad_keys = pad(xp, _bad_rows(xp, key, problem.group_heads)[..., 0], {-1: (0, 1)}, False)
    bad = xp.either(xp.take(bad_keys, index, 2), _bad_rows(xp, query))
    return _heads_last(xp, xp.spoil(found, ~xp.either(~bad, ~held)), problem.query_shape, query.dtype)


def av(xp: Operations, problem: Problem, attn: Tensor, value: Tensor) -> Tensor:
    """Window slots times the values they stand for: ``[B, *shape, H, D_v]`` in the value's dtype."""
    slots = xp.astype(_heads_first(xp, xp.fixed_shape(attn)), compute_dtype(xp, value))
    index, _ = _slots(xp, problem, value)
    dense = xp.scatter(slots, index, problem.keys + 1)[..., : problem.keys]
    out = xp.spoil(dense @ _finite(xp, value, problem.group_heads), _sees(xp, problem, ~xp.isfinite(value)))
    return _heads_last(xp, out, problem.query_shape, value.dtype)


_FUNCTIONS: dict[str, Any] = {function.__name__: function for function in (forward, qk, av)}


def run(xp: Operations, program: DenseOperations, tensors: tuple[Any, ...]) -> Tensors:
    """The outputs of the program's function; ``tensors`` in the order of ``problem.record.inputs``."""
    found = _FUNCTIONS[program.function](xp, program.problem, *tensors)
    return found if isinstance(found, tuple) else (found,)
