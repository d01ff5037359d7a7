"""The items of a call in its tensors: brought together for a launch, put back where they belong."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._metal.problem.ragged import Group
from ._tensors import compute_dtype


def cut(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first tokens of each axis of ``[B, *padded, ...]``."""
    for axis, length in enumerate(shape):
        tensor = tensor.narrow(1 + axis, 0, length)
    return tensor


def _index(group: Group, side: int, kind: str, device: torch.device) -> Tensor:
    """Where a group's items are on the first axis: batch items of a padded tensor, tokens of a packed one."""
    starts = torch.tensor([start[side] for start in group.starts], device=device)
    if kind == "padded":
        return starts
    tokens = math.prod((group.queries, group.keys)[side])
    return (starts[:, None] + torch.arange(tokens, device=device)).flatten()


def take(kind: str, tensors: Sequence[Tensor], group: Group, side: int) -> Tensor:
    """A group's items as a batch ``[n, *shape, ...]``: a view where they lie behind one another."""
    shape, count = (group.queries, group.keys)[side], len(group.starts)
    first = group.starts[0][side]
    if kind == "listed":
        return tensors[first][None] if count == 1 else torch.stack([tensors[start[side]] for start in group.starts])
    if kind == "padded":
        own = cut(tensors[0], shape)
        return (
            own.narrow(0, first, count)
            if group.adjacent
            else own.index_select(0, _index(group, side, kind, own.device))
        )
    own = tensors[0][0]
    if group.adjacent:
        own = own.narrow(0, first, count * math.prod(shape))
    else:
        own = own.index_select(0, _index(group, side, kind, own.device))
    return own.unflatten(0, (count, *shape))


def targets(kind: str, group: Group, *made: tuple[list[Tensor], int]) -> list[Tensor] | None:
    """Views of all results of a launch where they belong, if there are such views. made: tensors and their sides."""
    return [take(kind, tensors, group, side) for tensors, side in made] if group.adjacent else None


def put(kind: str, tensors: list[Tensor], group: Group, side: int, items: Tensor) -> None:
    """Write what :func:`take` would read."""
    shape, first = (group.queries, group.keys)[side], group.starts[0][side]
    if kind == "listed":
        for start, item in zip(group.starts, items.unbind(), strict=True):
            tensors[start[side]].copy_(item)
        return
    whole = cut(tensors[0], shape) if kind == "padded" else tensors[0][0]
    items = items if kind == "padded" else items.flatten(0, len(shape))
    if group.adjacent:
        whole.narrow(0, first, items.shape[0]).copy_(items)
    else:
        whole.index_copy_(0, _index(group, side, kind, whole.device), items)


def blank_outputs(queries: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Out and lse where no item is: 0 and -inf."""
    outs = [q.new_zeros((*q.shape[:-1], v.shape[-1])) for q, v in zip(queries, values, strict=True)]
    return outs, [q.new_full(q.shape[:-1], -torch.inf, dtype=compute_dtype(q)) for q in queries]
