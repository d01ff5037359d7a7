"""The items of a group, taken out of a call's tensors as one batch."""

import math
from collections.abc import Sequence

from ..problem.ragged import Group
from .operations import Operations, Tensor


def index(xp: Operations, group: Group, side: int, kind: str, like: Tensor) -> Tensor:
    """Where a group's items are along their axis: batch items of a padded tensor, tokens of a packed one."""
    starts = xp.integers([start[side] for start in group.starts], xp.int64, like)
    if kind == "padded":
        return starts
    tokens = xp.tables(xp.device(like)).arange(math.prod((group.queries, group.keys)[side]))
    return (starts[:, None] + tokens).flatten()


def take(xp: Operations, kind: str, tensors: Sequence[Tensor], group: Group, side: int) -> Tensor:
    """A group's items as a batch ``[n, *shape, ...]``: a view where they are adjacent."""
    shape, count = (group.queries, group.keys)[side], len(group.starts)
    first = group.starts[0][side]
    if kind == "listed":
        return tensors[first][None] if count == 1 else xp.stack([tensors[start[side]] for start in group.starts])
    if kind == "padded":
        own = tensors[0][(slice(None), *(slice(length) for length in shape))]
        return own[first : first + count] if group.adjacent else xp.take(own, index(xp, group, side, kind, own), 0)
    # Not tensors[0][0]: MLX gathers what an int selects, which copies all of it.
    own, end = tensors[0], first + count * math.prod(shape)
    own = own[:, first:end] if group.adjacent else xp.take(own, index(xp, group, side, kind, own), 1)
    return own.reshape(count, *shape, *own.shape[2:])
