"""Items in torch tensors: both packages share how they are gathered; results are copied to where they belong here."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from . import _operations
from ._metal.api import items as items_of
from ._metal.api.operations import compute_dtype
from ._metal.problem.ragged import Group


def cut(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first tokens of each axis of ``[B, *padded, ...]``."""
    for axis, length in enumerate(shape):
        tensor = tensor.narrow(1 + axis, 0, length)
    return tensor


take = partial(items_of.take, _operations)


def targets(kind: str, group: Group, *made: tuple[list[Tensor], int]) -> list[Tensor] | None:
    """Views of where the results of a launch belong, if such views exist. made: tensors of results and their sides."""
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
        whole.index_copy_(0, items_of.index(_operations, group, side, kind, whole), items)


def blank_outputs(queries: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Out and lse of tokens that belong to no item: 0 and -inf."""
    outs = [q.new_zeros((*q.shape[:-1], v.shape[-1])) for q, v in zip(queries, values, strict=True)]
    return outs, [q.new_full(q.shape[:-1], -torch.inf, dtype=compute_dtype(_operations, q)) for q in queries]
