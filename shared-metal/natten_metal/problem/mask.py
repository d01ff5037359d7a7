"""The neighborhood as a mask over all pairs: for display, for counting, and for the dense backend.

Written over an array namespace like :mod:`.window`, so that numpy, torch and MLX build the same mask.
"""

import math
from typing import Any

from ..caches import cached
from .checks.window import check_drawable
from .interval import TableNamespace, positions
from .problem import Axis, Problem
from .window import INTEGERS, group_length, window


class NumpyTables:
    """The array namespace of numpy, imported when first used."""

    def __init__(self) -> None:
        import numpy

        self.minimum, self.maximum, self.where = numpy.minimum, numpy.maximum, numpy.where
        self.arange = numpy.arange


def axis_windows(axis: Axis, xp: TableNamespace) -> tuple[Any, Any, Any]:
    """``[queries]`` each: dilation group, first key position and end of the window inside the group."""
    token = xp.arange(axis.queries) + axis.query_start
    group = token % axis.dilation
    length = group_length(axis.full, group, axis.dilation)
    start, end = window(token // axis.dilation, length, axis.window, axis.stride, axis.causal, xp)
    return group, start, xp.minimum(end, positions(axis.key_start, axis.keys, group, axis.dilation)[1])


def axis_mask(axis: Axis, xp: TableNamespace) -> Any:
    """``[queries, keys]`` bool: the query attends to the key, on one axis."""
    group, start, end = (part[:, None] for part in axis_windows(axis, xp))
    token = xp.arange(axis.keys)[None, :] + axis.key_start
    position = token // axis.dilation
    return (token % axis.dilation == group) & (start <= position) & (position < end)


def neighborhood_mask(problem: Problem, xp: TableNamespace | None = None) -> Any:
    """``[prod(query_shape), prod(key_shape)]`` bool: the AND over axes (numpy unless ``xp`` is given)."""
    xp = xp or NumpyTables()
    total = None
    for axis, sizes in enumerate(problem.axes):
        shape = [1] * (2 * problem.rank)
        shape[axis], shape[problem.rank + axis] = sizes.queries, sizes.keys
        part = axis_mask(sizes, xp).reshape(shape)
        total = part if total is None else total & part
    assert total is not None
    return total.reshape(problem.queries, problem.keys)


def slot_keys(problem: Problem, xp: TableNamespace | None = None) -> tuple[Any, Any]:
    """``[queries, slots]``: the key of each window slot, as an index into those at hand, and whether the slot has one.

    Slots are row-major over the window; a slot without a key refers to some key of the group.
    """
    xp = xp or NumpyTables()
    tokens, held = None, None
    for axis, sizes in enumerate(problem.axes):
        group, start, end = (part[:, None] for part in axis_windows(sizes, xp))
        position = start + xp.arange(sizes.window)[None, :]
        shape = [1] * (2 * problem.rank)
        shape[axis], shape[problem.rank + axis] = sizes.queries, sizes.window
        token = xp.minimum(position, end - 1) * sizes.dilation + group - sizes.key_start
        token = token.reshape(shape) * math.prod(problem.key_shape[axis + 1 :])
        inside = (position < end).reshape(shape)
        tokens = token if tokens is None else tokens + token
        held = inside if held is None else held & inside
    assert tokens is not None and held is not None
    return tokens.reshape(problem.queries, -1), held.reshape(problem.queries, -1)


def bias_offsets(problem: Problem, xp: TableNamespace | None = None) -> Any:
    """``[queries, keys]``: index of each pair into flattened rpb; clamped where masked."""
    xp = xp or NumpyTables()
    total = None
    for axis, sizes in enumerate(problem.axes):
        w, d = sizes.window, sizes.dilation
        key, query = xp.arange(sizes.keys) + sizes.key_start, xp.arange(sizes.queries) + sizes.query_start
        difference = key[None, :] // d - query[:, None] // d
        offset = xp.minimum(xp.maximum(difference + (w - 1), 0), 2 * w - 2)
        offset = offset * math.prod([2 * other - 1 for other in problem.kernel_size[axis + 1 :]])  # Dynamo: a list
        shape = [1] * (2 * problem.rank)
        shape[axis], shape[problem.rank + axis] = sizes.queries, sizes.keys
        total = offset.reshape(shape) if total is None else total + offset.reshape(shape)
    assert total is not None
    return total.reshape(problem.queries, problem.keys)


@cached("pairs of axes", 1024)
def axis_pairs(axis: Axis) -> int:
    """(query, key) pairs of one axis in closed form: no array, any length."""
    pairs = 0
    for group in range(axis.dilation):
        first, last = positions(axis.key_start, axis.keys, group, axis.dilation)
        queries = range(*positions(axis.query_start, axis.queries, group, axis.dilation))
        if not axis.causal:
            pairs += len(queries) * min(axis.window, last - first)
            continue
        length = group_length(axis.full, group, axis.dilation)
        for p in queries:
            start, end = window(p, length, axis.window, axis.stride, True, INTEGERS)
            pairs += min(end, last) - start
    return pairs


def pairs(problem: Problem) -> int:
    """(query, key) pairs of one head of one batch item, additional keys included."""
    return math.prod(axis_pairs(axis) for axis in problem.axes) + problem.queries * problem.additional


def flops(problem: Problem, backward: bool = False) -> int:
    """Useful floating-point operations of the op, or of its gradient alone: its matrix products over :func:`pairs`.

    A multiply-accumulate counts as two; softmax, scale, bias and additions count nothing. Forward: logits (over D) and
    outputs (over D_v); a split op has one of them. Backward: of a split op the gradients of both its inputs; of the
    others those of query and key (over D), of value and of the weights (over D_v), and the logits again (over D).
    """
    d, d_v = problem.head_dim, problem.head_dim_v
    width = d + d_v
    if backward:
        width = 2 * width if problem.record.bilinear else 3 * d + 2 * d_v
    return 2 * problem.batch * problem.heads * pairs(problem) * width


def picture(axis: Axis, limit: int = 64) -> str:
    """One line per query at hand: '#' where it attends, '.' elsewhere; its own position is 'O' or 'o'.

    limit: the most lines and columns; a longer axis raises ValueError.
    """
    check_drawable(max(axis.queries, axis.keys), limit)
    keys, lines = range(axis.key_start, axis.key_start + axis.keys), []
    for query in range(axis.query_start, axis.query_start + axis.queries):
        group, p = query % axis.dilation, query // axis.dilation
        length = group_length(axis.full, group, axis.dilation)
        start, end = window(p, length, axis.window, axis.stride, axis.causal)
        seen = {t * axis.dilation + group for t in range(start, min(end, length))}
        marks = [("O" if key in seen else "o") if key == query else ".#"[key in seen] for key in keys]
        lines.append("".join(marks))
    return "\n".join(lines)
