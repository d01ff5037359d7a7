"""The tensors of queries on a finer grid than the keys: as query heads of the keys' grid, and back.

Keys and values are neither repeated nor copied. Queries and outputs are reordered, which copies them.
"""

import math

from ..problem.finer_grid import Ratio
from .operations import Operations, Tensor


def to_heads(xp: Operations, tensor: Tensor, ratio: Ratio) -> Tensor:
    """``[B, *queries, H, D]`` -> ``[B, *keys, H * prod(ratio), D]``."""
    rank = len(ratio)
    for axis in reversed(range(rank)):
        tensor = xp.unflatten(tensor, 1 + axis, (tensor.shape[1 + axis] // ratio[axis], ratio[axis]))
    for axis in range(rank):  # [B, X, r, Y, s, H, D] -> [B, X, Y, H, r, s, D], one after another
        tensor = xp.moveaxis(tensor, 2 + axis, 2 * rank + 1)
    return tensor.flatten(rank + 1, 2 * rank + 1)


def from_heads(xp: Operations, tensor: Tensor, ratio: Ratio) -> Tensor:
    """``[B, *keys, H * prod(ratio), ...]`` -> ``[B, *queries, H, ...]``."""
    rank = len(ratio)
    heads = tensor.shape[rank + 1] // math.prod(ratio)
    tensor = xp.unflatten(tensor, rank + 1, (heads, *ratio))
    for axis in range(rank):  # [B, X, Y, H, r, s, ...] -> [B, X, r, Y, s, H, ...]
        tensor = xp.moveaxis(tensor, rank + 2 + axis, 2 + 2 * axis)
    for axis in range(rank):
        tensor = tensor.flatten(1 + axis, 2 + axis)
    return tensor


def repeat_rpb(xp: Operations, rpb: Tensor | None, ratio: Ratio) -> Tensor | None:
    """``[H, ...]`` -> ``[H * prod(ratio), ...]``: the same bias for all queries of a key's cell."""
    return None if rpb is None else xp.repeat_heads(rpb[None], math.prod(ratio))[0]
