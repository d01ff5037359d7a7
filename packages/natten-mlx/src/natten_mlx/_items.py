"""The items of a call in its arrays: gathered for a launch, and scattered back to their places."""

import math
from collections.abc import Sequence

import mlx.core as mx

from ._metal.problem.ragged import Group


def _index(group: Group, side: int, kind: str) -> mx.array:
    """The range of a group's items on the first axis: batch items of a padded array, tokens of a packed one."""
    starts = mx.array([start[side] for start in group.starts], mx.int64)
    if kind == "padded":
        return starts
    return (starts[:, None] + mx.arange(math.prod((group.queries, group.keys)[side]), dtype=mx.int64)).flatten()


def take(kind: str, arrays: Sequence[mx.array], group: Group, side: int) -> mx.array:
    """A group's items as a batch ``[n, *shape, ...]``: a view if they are adjacent."""
    shape, count = (group.queries, group.keys)[side], len(group.starts)
    first = group.starts[0][side]
    if kind == "listed":
        return arrays[first][None] if count == 1 else mx.stack([arrays[start[side]] for start in group.starts])
    if kind == "padded":
        inner = tuple(slice(length) for length in shape)
        if group.adjacent:
            return arrays[0][(slice(first, first + count), *inner)]
        return mx.take(arrays[0][(slice(None), *inner)], _index(group, side, kind), 0)
    # Never arrays[0][0]: for an int index, MLX gathers, which copies the whole.
    end = first + count * math.prod(shape)
    own = arrays[0][:, first:end] if group.adjacent else mx.take(arrays[0], _index(group, side, kind), 1)
    return own.reshape(count, *shape, *own.shape[2:])


def put(kind: str, arrays: list[mx.array], group: Group, side: int, items: mx.array) -> None:
    """Replace what :func:`take` would read; MLX writes in place, because nothing else needs the array."""
    shape, count = (group.queries, group.keys)[side], len(group.starts)
    first = group.starts[0][side]
    if kind == "listed":
        for place, start in enumerate(group.starts):
            arrays[start[side]] = items[place]
    elif kind == "padded" and items.shape == arrays[0].shape:
        arrays[0] = items
    elif kind == "padded" and group.adjacent:
        arrays[0][(slice(first, first + count), *(slice(length) for length in shape))] = items
    elif kind == "padded":
        index = _index(group, side, kind)
        inner = tuple(slice(length) for length in shape)
        rows = mx.take(arrays[0], index, 0)
        rows[(slice(None), *inner)] = items
        arrays[0][index] = rows
    else:
        tokens = items.flatten(0, len(shape))[None]
        where = slice(first, first + tokens.shape[1]) if group.adjacent else _index(group, side, kind)
        arrays[0][:, where] = tokens
