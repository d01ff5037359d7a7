"""Items in MLX arrays: both packages share how they are gathered; results are put where they belong here."""

from functools import partial

import mlx.core as mx

from . import _operations
from ._metal.api import items as items_of
from ._metal.problem.ragged import Group

take = partial(items_of.take, _operations)


def put(kind: str, arrays: list[mx.array], group: Group, side: int, items: mx.array) -> None:
    """Replace what :func:`take` would read; MLX writes in place, because nothing else needs the array."""
    shape, count = (group.queries, group.keys)[side], len(group.starts)
    first = group.starts[0][side]
    if kind == "listed":
        for index, start in enumerate(group.starts):
            arrays[start[side]] = items[index]
    elif kind == "padded" and items.shape == arrays[0].shape:
        arrays[0] = items
    elif kind == "padded" and group.adjacent:
        arrays[0][(slice(first, first + count), *(slice(length) for length in shape))] = items
    elif kind == "padded":
        index = items_of.index(_operations, group, side, kind, arrays[0])
        inner = tuple(slice(length) for length in shape)
        rows = mx.take(arrays[0], index, 0)
        rows[(slice(None), *inner)] = items
        arrays[0][index] = rows
    else:
        tokens = items.flatten(0, len(shape))[None]
        where = (
            slice(first, first + tokens.shape[1])
            if group.adjacent
            else items_of.index(_operations, group, side, kind, arrays[0])
        )
        arrays[0][:, where] = tokens
