"""Items of different sizes in plain operations, which torch can differentiate any number of times.

One gather of all items' tokens, one split, one launch of the dense backend per kind of item, one concatenation and one
scatter: each is linear in the number of tokens, and so is its derivative.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .._items import blank_outputs
from .._metal.plan.backend import DENSE
from .._metal.problem import ragged
from .._metal.problem.problem import Problem
from .._metal.problem.ragged import KEYS, QUERIES
from .._run import run


def attend(
    kind: str, table: ragged.Table, problem: Problem, tensors: tuple[Any, ...], rpb: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outs and lses; tensors: queries, keys and values, lists each."""
    queries, keys, values = tensors
    rank = len(problem.query_shape)
    groups = ragged.groups(table, rank, kind, None)
    outs, lses = blank_outputs(queries, values)
    # Add empty sums, so that outputs without items depend on the inputs too, with gradients of zero. They have one
    # element, because torch cannot map additions of scalars over an empty axis.
    for index, ties in enumerate(zip(queries, keys, values, strict=True)):
        nothing = sum(tensor.flatten()[:0].sum(0, keepdim=True) for tensor in ties)
        outs[index], lses[index] = outs[index] + nothing, lses[index] + nothing
    padded = [tuple(each[0].shape[1:-2]) for each in tensors]
    sides = (QUERIES, KEYS, KEYS)
    pieces = [
        _batches(kind, each, groups, side, shape) for each, side, shape in zip(tensors, sides, padded, strict=True)
    ]
    results = []
    for group, *own in zip(groups, *pieces, strict=True):
        given = [*own, None, None, rpb][: len(problem.record.inputs)]
        results.append(run(ragged.problem_of(problem, group), DENSE.name, tuple(given)))
    for made, found in zip((outs, lses), zip(*results, strict=True) if results else ((), ()), strict=True):
        _put(kind, made, groups, padded[0], list(found))
    return outs, lses


def _tokens(
    kind: str, groups: tuple[ragged.Group, ...], side: int, padded: tuple[int, ...], device: torch.device
) -> Tensor:
    """The tokens of all items, launch after launch, in the flat order of a padded or packed tensor."""
    found = [number for group in groups for number in ragged.tokens_of(group, side, kind, padded)]
    return torch.tensor(found, dtype=torch.int64, device=device)


def _batches(
    kind: str, tensors: list[Tensor], groups: tuple[ragged.Group, ...], side: int, padded: tuple[int, ...]
) -> list[Tensor]:
    """For each launch its items, ``[n, *shape, ...]``."""
    if kind == "listed":
        return [torch.stack([tensors[start[side]] for start in group.starts]) for group in groups]
    if not groups:
        return []
    shapes = [(len(group.starts), *(group.queries, group.keys)[side]) for group in groups]
    flat = tensors[0].flatten(0, -3).index_select(0, _tokens(kind, groups, side, padded, tensors[0].device))
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _put(
    kind: str, made: list[Tensor], groups: tuple[ragged.Group, ...], padded: tuple[int, ...], found: list[Tensor]
) -> None:
    """Put the results of the launches where their items are, without writing into tensors that autograd may need."""
    if kind == "listed":
        for group, batch in zip(groups, found, strict=True):
            for start, item in zip(group.starts, batch.unbind(), strict=True):
                made[start[QUERIES]] = item
        return
    if not groups:
        return
    whole, leading = made[0], len(padded) + 1
    flat = torch.cat([batch.flatten(0, len(group.queries)) for group, batch in zip(groups, found, strict=True)])
    index = _tokens(kind, groups, QUERIES, padded, whole.device)
    made[0] = whole.flatten(0, leading - 1).index_copy(0, index, flat).view(whole.shape)
